#!/bin/bash
# sway, headless, in its session's scope as a display manager starts it. SWAY=wayfire: the same with wayfire.
# Needs: sway wtype (wayfire). Proves: org_kde_kwin_idle of wlroots 0.15; a compositor's nameless inhibitor.
. "$(dirname "$0")/lib.sh"
c=${SWAY:-sway}
w() { as env WAYLAND_DISPLAY=wayland-1 SWAYSOCK="$rundir/sway.sock" "$@"; }
case $verb in
  needs) need "$c" wtype; exit ;;
  start) alone none; need "$c" wtype
    extra=(-E WLR_BACKENDS=headless -E WLR_LIBINPUT_NO_DEVICES=1 -E WLR_RENDERER=pixman -E SWAYSOCK="$rundir/sway.sock")
    printf 'output HEADLESS-1 resolution 1280x800\nxwayland disable\n' >/tmp/sway.conf; chmod 644 /tmp/sway.conf
    if [ "$c" = sway ]; then pam_session wayland sway sway -c /tmp/sway.conf; else pam_session wayland wayfire wayfire; fi
    until_ 100 test -S "$rundir/wayland-1" ;;
  touch) boottime; w wtype -k Shift_L ;;
  lock) if command -v swaylock >/dev/null; then systemd-run -q --unit=locker --collect -pUser="$who" -E XDG_RUNTIME_DIR="$rundir" -E WAYLAND_DISPLAY=wayland-1 swaylock -c 000000; else loginctl lock-session "$(session)"; fi ;;
  touch-locked) exec "$0" touch "$who" ;;
  unlock) systemctl stop locker ;;
  inhibit) w systemd-inhibit --what=idle --who=filmplayer --why=film sleep 1000 ;;
  hang) kill -STOP $(pids "$c") ;;
  go-on) kill -CONT $(pids "$c") ;;
  kill) kill -KILL $(pids "$c") ;;
  logout) [ "$c" = sway ] && w swaymsg exit; sleep 1; end_user ;;
esac
