#!/bin/bash
# GNOME on Wayland, whole: gnome-session under the user's systemd, GNOME Shell headless.
# Needs: gnome-shell gnome-session gnome-session-bin gnome-settings-daemon xwayland python3-gi (Debian 12: GNOME 43).
# Proves: what a GNOME desktop tells by Mutter's idle monitor, its lock screen by logind, its list of inhibitors.
. "$(dirname "$0")/lib.sh"
case $verb in
  needs) need gnome-shell gnome-session; exit ;;
  start) need gnome-shell gnome-session
    alone gnome
    d=/etc/systemd/user/org.gnome.Shell@wayland.service.d; mkdir -p $d
    printf '[Service]\nExecStart=\nExecStart=/usr/bin/gnome-shell --headless --wayland --virtual-monitor 1280x800\nEnvironment=MUTTER_DEBUG_RESET_IDLETIME=1\n' >$d/headless.conf
    pam_session wayland GNOME gnome-session --session=gnome --disable-acceleration-check
    until_ 200 as busctl --user call org.gnome.Mutter.IdleMonitor /org/gnome/Mutter/IdleMonitor/Core org.gnome.Mutter.IdleMonitor GetIdletime ;;
  touch) as python3 "$here/gnome_key.py" ;;
  lock) loginctl lock-session "$(session)" ;;
  touch-locked) exec "$0" touch "$who" ;;
  unlock) loginctl unlock-session "$(session)" ;;
  inhibit) as gnome-session-inhibit --inhibit idle --app-id filmplayer --reason film sleep 1000 ;;
  inhibit2) as python3 "$here/saver_hold.py" ;;
  hang) kill -STOP $(pids gnome-shell) ;;
  go-on) kill -CONT $(pids gnome-shell) ;;
  kill) kill -KILL $(pids gnome-shell) ;;
  logout) as gnome-session-quit --logout --no-prompt --force; until_ 50 bash -c "! systemctl -q is-active $unit" || end_user ;;
esac
