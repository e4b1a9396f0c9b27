#!/bin/bash
# Weston, nested in an Xvfb that is its screen and keyboard. Needs: weston xvfb xdotool.
# Proves: a compositor with a seat that offers no idle notification counts as somebody there.
. "$(dirname "$0")/lib.sh"
case $verb in
  needs) need weston Xvfb xdotool; exit ;;
  start) alone none; need weston Xvfb xdotool; xvfb 8; extra=(-E DISPLAY=:8); pam_session wayland weston weston --backend=x11-backend.so --idle-time=0
    until_ 100 bash -c "ls $rundir/wayland-*" ;;
  touch) boottime; DISPLAY=:8 xdotool mousemove_relative 5 5 ;;
  lock) loginctl lock-session "$(session)" ;;
  unlock) loginctl unlock-session "$(session)" ;;
  inhibit) as systemd-inhibit --what=idle --who=filmplayer --why=film sleep 1000 ;;
  hang) kill -STOP $(pids weston) ;;
  go-on) kill -CONT $(pids weston) ;;
  kill) kill -KILL $(pids weston) ;;
  logout) end_user; systemctl stop screen8 ;;
esac
