#!/bin/bash
# LightDM on an Xvfb, as a display manager starts a desktop: greeter alone, or DESK (xfce, mate, cinnamon, lxqt, i3, openbox) by autologin.
#   DESK=xfce lightdm.sh start anna; without DESK only the greeter
# Needs: lightdm lightdm-gtk-greeter xvfb xdotool and the desktop.
# Proves: X11 sessions that logind knows by their display manager (Type=x11, Display=:0), and a greeter that is no person.
. "$(dirname "$0")/lib.sh"
export DISPLAY=:0
xauth=$home/.Xauthority
x() { as env DISPLAY=:0 XAUTHORITY="$xauth" "$@"; }
conf() {
  mkdir -p /etc/lightdm/lightdm.conf.d /var/lib/lightdm /var/cache/lightdm /var/log/lightdm; chown lightdm: /var/lib/lightdm /var/cache/lightdm
  cat >/usr/local/bin/x-screen <<'X'
#!/bin/bash
# LightDM's X server: what Xvfb knows of its options
keep=(); while [ $# -gt 0 ]; do case $1 in -seat | -background) shift ;; vt* | -novtswitch | -keeptty) ;; *) keep+=("$1") ;; esac; shift; done
exec Xvfb "${keep[@]}" -screen 0 1280x800x24
X
  chmod 755 /usr/local/bin/x-screen
  printf '[LightDM]\nlogind-check-graphical=false\n[Seat:*]\nxserver-command=/usr/local/bin/x-screen\ngreeter-session=lightdm-gtk-greeter\n' >/etc/lightdm/lightdm.conf.d/90-box.conf
  [ -z "${DESK:-}" ] || printf 'autologin-user=%s\nautologin-session=%s\n' "$who" "$DESK" >>/etc/lightdm/lightdm.conf.d/90-box.conf
  # A box has no VT, and logind refuses a session on one: take LightDM's VT number out of what pam_systemd is told.
  printf 'XDG_VTNR DEFAULT= OVERRIDE=\n' >/etc/security/no-vt.conf
  for p in lightdm lightdm-autologin lightdm-greeter; do
    grep -q no-vt /etc/pam.d/$p || sed -i '0,/^session/s//session optional pam_env.so conffile=\/etc\/security\/no-vt.conf\nsession/' /etc/pam.d/$p
  done
  systemctl unmask lightdm 2>/dev/null; rm -f /etc/X11/default-display-manager; echo /usr/sbin/lightdm >/etc/X11/default-display-manager
}
case $verb in
  needs) need lightdm Xvfb xdotool; exit ;;
  start) need lightdm Xvfb xdotool; systemctl -q stop lightdm-box 2>/dev/null; conf
    alone "${DESK:-none}"
    systemd-run -q --unit=lightdm-box --collect -pKillMode=mixed lightdm
    if [ -n "${DESK:-}" ]; then until_ 150 bash -c "loginctl --no-legend | grep -w $who"; else until_ 150 bash -c "loginctl --no-legend | grep -w lightdm"; fi ;;
  touch) boottime; if [ -n "${DESK:-}" ]; then x xdotool key shift; else env XAUTHORITY=/var/run/lightdm/root/:0 xdotool key shift; fi ;;
  lock) loginctl lock-session "$(session)" ;;
  touch-locked) exec "$0" touch "$who" ;;
  unlock) loginctl unlock-session "$(session)" ;;
  inhibit) x python3 "$here/saver_hold.py" ;;
  inhibit2) x python3 "$here/saver_hold.py" org.freedesktop.PowerManagement /org/freedesktop/PowerManagement/Inhibit org.freedesktop.PowerManagement.Inhibit ;;
  inhibit3) x python3 "$here/saver_hold.py" org.gnome.SessionManager /org/gnome/SessionManager ;;
  inhibit4) x systemd-inhibit --what=idle --who=filmplayer --why=film sleep 1000 ;;
  hang) kill -STOP $(pgrep -x Xvfb) ;;
  go-on) kill -CONT $(pgrep -x Xvfb) ;;
  kill) kill -KILL $(pgrep -x Xvfb) ;;
  logout) case ${DESK:-} in
      xfce) x xfce4-session-logout --logout --fast ;; mate) x mate-session-save --force-logout ;;
      cinnamon) x cinnamon-session-quit --logout --no-prompt --force ;; lxqt) x lxqt-leave --logout ;; i3) x i3-msg exit ;; openbox) x openbox --exit ;;
    esac
    sleep 4; s=$(session); [ -z "$s" ] || loginctl terminate-session "$s" ;;
esac
