#!/bin/bash
# A login screen alone. KIND=lightdm (real LightDM on Xvfb) | gdm (its greeter's GNOME session, headless) | sddm (its greeter on Xvfb).
# gdm and sddm as daemons want a seat that logind calls graphical, which no box has: their greeters run under their own user and PAM service.
# Needs: lightdm lightdm-gtk-greeter | gdm3 gnome-shell | sddm; xvfb xdotool. Proves: class greeter is no person, touched or not.
. "$(dirname "$0")/lib.sh"
KIND=${KIND:-lightdm}
greeter() { # USER PAM-SERVICE TYPE command...
  local u=$1 pam=$2 type=$3; shift 3
  systemd-run -q --unit=greeter-box --collect -pUser="$u" -pPAMName="$pam" -E XDG_SESSION_TYPE="$type" -E XDG_SEAT=seat0 -E XDG_SESSION_CLASS=greeter -E LIBGL_ALWAYS_SOFTWARE=1 "${extra[@]}" \
    bash -c 'export DBUS_SESSION_BUS_ADDRESS=unix:path=$XDG_RUNTIME_DIR/bus; exec "$@"' g "$@"; }
case $verb in
  start) case $KIND in
      lightdm) DESK='' exec "$here/lightdm.sh" start ;;
      gdm) need gnome-shell; d=/etc/systemd/user/org.gnome.Shell@wayland.service.d; mkdir -p $d
        printf '[Service]\nExecStart=\nExecStart=/usr/bin/gnome-shell --headless --wayland --virtual-monitor 1280x800\n' >$d/headless.conf
        mkdir -p /var/lib/gdm3; chown Debian-gdm: /var/lib/gdm3; extra=(-E HOME=/var/lib/gdm3 -E GNOME_SHELL_SESSION_MODE=gdm -E XDG_CURRENT_DESKTOP=GNOME-Greeter:GNOME -E XDG_DATA_DIRS=/usr/share/gdm/greeter:/usr/local/share:/usr/share)
        greeter Debian-gdm gdm-launch-environment wayland gnome-session --session=gnome-login --disable-acceleration-check --autostart=/usr/share/gdm/greeter/autostart; until_ 100 pgrep -u Debian-gdm -x gnome-shell ;;
      sddm) need sddm-greeter Xvfb; mkdir -p /var/lib/sddm; chown sddm: /var/lib/sddm
        systemd-run -q --unit=screen7 --collect Xvfb :7 -screen 0 1280x800x24 -ac -nolisten tcp; until_ 50 test -S /tmp/.X11-unix/X7
        systemd-run -q --unit=greeter-box --collect -E XDG_SESSION_TYPE=x11 -E XDG_SEAT=seat0 -E XDG_SESSION_CLASS=greeter -E HOME=/var/lib/sddm -E QT_QUICK_BACKEND=software \
          python3 "$here/pam_display.py" sddm-greeter sddm :7 sddm-greeter --test-mode --theme /usr/share/sddm/themes/debian-breeze ;;
    esac ;;
  touch) case $KIND in lightdm) boottime; XAUTHORITY=/var/run/lightdm/root/:0 DISPLAY=:0 xdotool key shift ;; sddm) boottime; DISPLAY=:7 xdotool key shift ;;
      gdm) u=$(id -u Debian-gdm); runuser -u Debian-gdm -- env XDG_RUNTIME_DIR=/run/user/$u DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$u/bus python3 "$here/gnome_key.py" ;; esac ;;
  logout) systemctl stop greeter-box lightdm-box screen7 2>/dev/null ;;
esac
