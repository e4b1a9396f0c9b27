#!/bin/bash
# Desktops over the network. KIND=vncsession|vncserver|xrdp|wayvnc; the desktop in it is openbox (DESK=xfce: Xfce).
#   vncsession: tigervnc's unit (own PAM service); vncserver: started by the user from an SSH-like login; xrdp: xorgxrdp and
#   a FreeRDP client on an Xvfb; wayvnc: on a headless sway (start sway.sh first).
# Needs: tigervnc-standalone-server openbox xrdp xorgxrdp freerdp2-x11 xvfb xdotool wayvnc.
# Proves: what logind says of such sessions (type, class, remote) and whether their person is seen.
. "$(dirname "$0")/lib.sh"
KIND=${KIND:-vncsession}
xsession() { printf '#!/bin/sh\nexec %s\n' "$([ "${DESK:-}" = xfce ] && echo startxfce4 || echo openbox)" >"$home/.xsession"; chmod 755 "$home/.xsession"; chown "$who:" "$home/.xsession"; }
session() { loginctl list-sessions --no-legend | awk -v u="$who" '$3 == u {print $1}' | tail -1; }
case $verb in
  start) xsession
    case $KIND in
      vncsession) need vncsession; mkdir -p "$home/.vnc"; printf 'session=%s\nSecurityTypes=None\nlocalhost\n' "$([ "${DESK:-}" = xfce ] && echo xfce || echo openbox)" >"$home/.vnc/config"; chown -R "$who:" "$home/.vnc"
        echo ":3=$who" >/etc/tigervnc/vncserver.users; systemd-run -q --unit=vnc-box --collect -pType=forking -pPIDFile=/run/vncsession-:3.pid /usr/libexec/vncsession-start :3 2>/dev/null || systemd-run -q --unit=vnc-box --collect -pType=forking vncsession "$who" :3
        until_ 100 bash -c ': </dev/tcp/127.0.0.1/5903' ;;
      vncserver) need vncserver; mkdir -p "$home/.vnc"; chown -R "$who:" "$home/.vnc"
        systemd-run -q --unit="$unit" --collect -pUser="$who" -pPAMName=sshd -pRemainAfterExit=yes -E XDG_SESSION_TYPE=tty -E HOME="$home" sh -c 'vncserver :3 -SecurityTypes None -localhost yes -xstartup /usr/bin/openbox; sleep 3600'
        until_ 100 bash -c ': </dev/tcp/127.0.0.1/5903' ;;
      xrdp) need xrdp xrdp-sesman xfreerdp Xvfb xdotool
        mkdir -p /var/run/xrdp; [ -f /etc/xrdp/rsakeys.ini ] || xrdp-keygen xrdp auto >/dev/null
        rm -f /etc/xrdp/key.pem /etc/xrdp/cert.pem; openssl req -x509 -newkey rsa:2048 -nodes -keyout /etc/xrdp/key.pem -out /etc/xrdp/cert.pem -subj /CN=box -days 30 2>/dev/null; chmod 640 /etc/xrdp/key.pem # RDP's own security fails here (MAC checksum)
        systemd-run -q --unit=sesman-box --collect xrdp-sesman -n; systemd-run -q --unit=xrdp-box --collect xrdp -n
        until_ 50 bash -c ': </dev/tcp/127.0.0.1/3389'; xvfb 9
        systemd-run -q --unit=rdp-client --collect -E DISPLAY=:9 -E HOME=/root xfreerdp /v:127.0.0.1 /u:"$who" /p:"$who" /cert:ignore /sec:tls /size:800x600
        until_ 100 pgrep -u "$uid" -x openbox\|xfce4-session ;;
      wayvnc) need wayvnc; systemd-run -q --unit=wayvnc-box --collect -pUser="$who" -E XDG_RUNTIME_DIR="$rundir" -E WAYLAND_DISPLAY=wayland-1 wayvnc 127.0.0.1 5903; until_ 50 bash -c ': </dev/tcp/127.0.0.1/5903' ;;
    esac ;;
  touch) case $KIND in xrdp) boottime; DISPLAY=:9 xdotool mousemove_relative 7 7 key shift ;; *) python3 "$here/rfb_key.py" 5903 ;; esac ;;
  lock) loginctl lock-session "$(session)" ;; unlock) loginctl unlock-session "$(session)" ;;
  hang) kill -STOP $(pgrep -u "$uid" -x Xtigervnc\|Xorg) ;; go-on) kill -CONT $(pgrep -u "$uid" -x Xtigervnc\|Xorg) ;;
  kill) kill -KILL $(pgrep -u "$uid" -x Xtigervnc\|Xorg) ;;
  logout) [ "$KIND" != vncserver ] || as vncserver -kill :3 >/dev/null 2>&1
    systemctl stop vnc-box rdp-client screen9 xrdp-box sesman-box wayvnc-box "$unit" 2>/dev/null; loginctl terminate-user "$who" ;;
esac
