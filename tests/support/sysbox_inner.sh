#!/bin/bash
# Runs as pid 1 of fresh pid, mount, uts, ipc, cgroup (and net) namespaces: builds a throw-away root and execs systemd.
# BOX_BASE: scratch folder outside; BOX_BINDS: "src:dst[:ro]" a line; BOX_OPEN: folders to make passable, one a line;
# BOX_LAYER: a folder that lies over / of the machine around it, if any; BOX_BASE/m is a tmpfs that outlives a reboot of the box.
# BOX_SUSPEND=1: a writable stand-in for /sys/power/state, so that logind believes that this machine can suspend.
set -eu
mnt=$BOX_BASE/m
first=
mkdir "$mnt"/{up,wk,root} 2>/dev/null && first=1 # else a reboot: the disk is as it was left
chmod 755 "$mnt/up"
root=$mnt/root
mount -t overlay -o "lowerdir=${BOX_LAYER:+$BOX_LAYER:}/,upperdir=$mnt/up,workdir=$mnt/wk" overlay "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"
mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate cgroup2 "$root/sys/fs/cgroup" # shows our own subtree only

mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev" # no tty0, no devices of the machine around it
for node in null zero full random urandom tty; do
  : >"$root/dev/$node"
  mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir -p "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
for link in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${link%%:*}" "$root/dev/${link#*:}"; done
: >"$root/dev/console"

mount -t tmpfs -o mode=755,nosuid tmpfs "$root/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"
mkdir -p "$root/mnt/share"
mount --bind "$BOX_BASE/share" "$root/mnt/share"
while IFS=: read -r src dst opt; do
  [ -n "$src" ] || continue
  mkdir -p "$root$dst"
  mount --bind "$src" "$root$dst"
  [ "${opt:-}" != ro ] || mount -o remount,bind,ro "$root$dst"
done <<<"${BOX_BINDS:-}"
while read -r folder; do
  [ -z "$folder" ] || chmod a+x "$root$folder" # in the overlay: the machine around it is not changed
done <<<"${BOX_OPEN:-}"
if [ -n "${BOX_SUSPEND:-}" ]; then
  echo "freeze mem" >"$root/run/fake-power-state"
  mount --bind "$root/run/fake-power-state" "$root/sys/power/state"
fi

etc=$root/etc/systemd
units=$etc/system
[ -z "$first" ] || rm -rf "$units"/*.wants "$units"/*.requires # nothing that the machine around it enabled
cat >"$units/sdbox.target" <<'T'
[Unit]
Requires=basic.target
Wants=dbus.service systemd-logind.service systemd-user-sessions.service
After=basic.target dbus.service systemd-logind.service systemd-user-sessions.service
AllowIsolate=yes
T
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket systemd-udevd-kernel.socket \
  systemd-modules-load.service kmod-static-nodes.service systemd-sysctl.service systemd-random-seed.service \
  systemd-firstboot.service systemd-repart.service systemd-machine-id-commit.service systemd-binfmt.service \
  systemd-timesyncd.service systemd-remount-fs.service systemd-sysusers.service systemd-update-utmp.service \
  systemd-pstore.service systemd-journald-audit.socket systemd-initctl.socket systemd-pcrphase.service \
  systemd-pcrphase-sysinit.service proc-sys-fs-binfmt_misc.automount dev-hugepages.mount dev-mqueue.mount \
  sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount timers.target \
  modprobe@drm.service; do
  ln -sf /dev/null "$units/$unit"
done
mkdir -p "$etc/journald.conf.d" "$etc/logind.conf.d"
printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n' >"$etc/journald.conf.d/sdbox.conf"
[ ! -s "$BOX_BASE/logind.conf" ] || cp "$BOX_BASE/logind.conf" "$etc/logind.conf.d/sdbox.conf"
ip link set lo up 2>/dev/null || true

cd "$root"
mkdir -p mnt/old
pivot_root . mnt/old
umount -l /mnt/old
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=sdbox LANG=C.UTF-8 \
  /lib/systemd/systemd --system --log-target=journal --unit=sdbox.target --show-status=no
