#!/bin/bash
# KDE Plasma on Wayland, whole: startplasma-wayland under the user's systemd, KWin with a virtual screen.
# Needs: plasma-workspace plasma-workspace-wayland kwin-wayland powerdevil plasma-desktop (Debian 12: 5.27).
# Proves: idle notification by KWin, KDE's list of inhibitions (PowerDevil), kscreenlocker by logind.
. "$(dirname "$0")/lib.sh"
case $verb in
  needs) need kwin_wayland startplasma-wayland; exit ;;
  start) need kwin_wayland startplasma-wayland
    alone kde
    d=/etc/systemd/user/plasma-kwin_wayland.service.d; mkdir -p $d
    printf '[Service]\nExecStart=\nExecStart=/usr/bin/kwin_wayland_wrapper --xwayland --virtual --width 1280 --height 800\nEnvironment=KWIN_WAYLAND_NO_PERMISSION_CHECKS=1 KWIN_COMPOSE=Q QT_QUICK_BACKEND=software\n' >$d/virtual.conf
    setcap -r /usr/bin/kwin_wayland 2>/dev/null # a file capability that the box's bounding set lacks makes its exec fail (EPERM); the overlay's copy only
    extra=(-E KWIN_WAYLAND_NO_PERMISSION_CHECKS=1 -E KWIN_COMPOSE=Q -E QT_QUICK_BACKEND=software)
    pam_session wayland KDE startplasma-wayland
    until_ 200 test -S "$rundir/wayland-0" && until_ 200 as busctl --user status org.kde.plasmashell ;;
  touch) as python3 "$here/kwin_move.py" ;;
  lock) loginctl lock-session "$(session)" ;;
  touch-locked) exec "$0" touch "$who" ;;
  unlock) loginctl unlock-session "$(session)" ;;
  inhibit) as python3 "$here/saver_hold.py" ;;
  inhibit2) as python3 "$here/saver_hold.py" org.freedesktop.PowerManagement /org/freedesktop/PowerManagement/Inhibit org.freedesktop.PowerManagement.Inhibit ;;
  inhibit4) as systemd-inhibit --what=idle --who=filmplayer --why=film sleep 1000 ;;
  hang) kill -STOP $(pids kwin_wayland) ;;
  go-on) kill -CONT $(pids kwin_wayland) ;;
  kill) kill -KILL $(pids kwin_wayland) ;;
  logout) as qdbus org.kde.Shutdown /Shutdown logout 2>/dev/null || as busctl --user call org.kde.Shutdown /Shutdown org.kde.Shutdown logout
    until_ 50 bash -c "! systemctl -q is-active $unit" || end_user ;;
esac
