# Shared by the desktop scripts here; sourced, run as root inside a box (SysBox) or any machine with systemd and logind.
#   NAME.sh needs|start|touch|lock|unlock|inhibit|hang|go-on|kill|logout [USER, default anna]
# start  a real PAM session with logind and the desktop in it, as its display manager would; returns when it is up
# touch  one act of a person; prints CLOCK_BOOTTIME right before it
# inhibit  what a film player does there, until it is killed
# Exit 77: a program is missing.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
verb=${1:?verb} who=${2:-anna}
uid=$(id -u "$who") rundir=/run/user/$uid unit=desk-$who
home=$(getent passwd "$who" | cut -d: -f6)
need() { local p; for p; do command -v "$p" >/dev/null || { echo "needs $p" >&2; exit 77; }; done; }
as() { # a command with what a program of the session's knows
  runuser -u "$who" -- env -i HOME="$home" USER="$who" PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 \
    XDG_RUNTIME_DIR="$rundir" DBUS_SESSION_BUS_ADDRESS="unix:path=$rundir/bus" "$@"; }
boottime() { cut -d' ' -f1 /proc/uptime >/dev/null; python3 -c 'import time; print(time.clock_gettime(time.CLOCK_BOOTTIME))'; }
until_() { local n=$1; shift; while ! "$@" >/dev/null 2>&1; do n=$((n - 1)); [ $n -gt 0 ] || { echo "not in time: $*" >&2; return 1; }; sleep 0.2; done; }
session() { loginctl list-sessions --no-legend | awk -v u="$who" '$3 == u {print $1}' | while read -r s; do
  case $(loginctl show-session "$s" -p Type --value) in x11 | wayland) echo "$s" ;; esac; done | tail -1; }
pam_session() { # TYPE DESKTOP command...: logind session of class user on seat0; its leader runs the command
  local type=$1 desktop=$2; shift 2
  systemd-run -q --unit="$unit" --collect -pUser="$who" -pPAMName=login -pWorkingDirectory="$home" -pTimeoutStopSec=10 \
    -E XDG_SESSION_TYPE="$type" -E XDG_SEAT=seat0 -E XDG_SESSION_CLASS=user -E XDG_SESSION_DESKTOP="$desktop" \
    -E XDG_CURRENT_DESKTOP="$desktop" -E LANG=C.UTF-8 -E PATH=/usr/local/bin:/usr/bin:/bin -E HOME="$home" \
    -E LIBGL_ALWAYS_SOFTWARE=1 "${extra[@]}" bash -c 'export DBUS_SESSION_BUS_ADDRESS=unix:path=$XDG_RUNTIME_DIR/bus; exec "$@"' session "$@"; }
extra=()
pids() { pgrep -u "$uid" -x "$1"; }
alone() { # NAME: what other desktops of the layer have for D-Bus to start is not installed where this one alone is
  local other
  for other in gnome kde cinnamon mate xfce lxqt; do
    [ "$other" = "$1" ] || rm -f /usr/share/dbus-1/services/org.{,freedesktop.}"$other".* /usr/share/dbus-1/services/*portal.desktop."$other".service
  done
  case $1 in xfce | lxqt) ;; *) rm -f /etc/xdg/autostart/light-locker.desktop ;; esac; }
end_user() { systemctl stop "$unit" 2>/dev/null; s=$(session); [ -z "$s" ] || loginctl terminate-session "$s"; }
xvfb() { # DISPLAY number: an X server of a system account's, which is nobody's: the "hardware" of a nested compositor or of a client
  systemd-run -q --unit="screen$1" --collect -pUser=daemon Xvfb ":$1" -screen 0 1280x800x24 -nolisten tcp -ac -noreset
  until_ 50 test -S "/tmp/.X11-unix/X$1"; }
