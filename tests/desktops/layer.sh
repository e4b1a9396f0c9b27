#!/bin/bash
# Makes the layer of packages that the desktops need: layer.sh IMAGE. An ext4 file that holds what apt changes on an overlay
# of /, so that nothing comes onto the machine itself: user units of a desktop would start in every other box. Boxes boot
# with it below them (support/sysbox.py, `layer`). It needs root, loop devices and Debian's packages; minutes, once.
set -eu
image=$1
packages=$(grep -v '^#' "$(dirname "$0")/packages.txt")
draft=$image.draft
mkdir -p "$(dirname "$image")"
rm -f "$draft"
truncate -s 8G "$draft"
mkfs.ext4 -q -m 0 -O ^has_journal "$draft"
export image draft packages
# In a mount namespace of its own: whatever happens, nothing stays mounted.
unshare --mount --propagation private --pid --fork --kill-child=KILL bash -euc '
  top=$(mktemp -d)
  mount -o loop "$draft" "$top"
  mkdir -p "$top"/{up,wk} /run/desktops-root
  root=/run/desktops-root
  mount -t overlay -o "lowerdir=/,upperdir=$top/up,workdir=$top/wk" overlay "$root"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount -t sysfs -o ro sysfs "$root/sys"
  mount -t tmpfs tmpfs "$root/run"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
  ! [ -e /run/systemd/resolve ] || { mkdir -p "$root/run/systemd"; cp -r /run/systemd/resolve "$root/run/systemd/"; }
  printf "#!/bin/sh\nexit 101\n" >"$root/usr/sbin/policy-rc.d" # nothing starts while it is installed
  chmod 755 "$root/usr/sbin/policy-rc.d"
  in=(chroot "$root" env DEBIAN_FRONTEND=noninteractive)
  "${in[@]}" apt-get -q update
  "${in[@]}" apt-get -q install -y --no-install-recommends $packages </dev/null
  "${in[@]}" apt-get -q clean
  rm "$root/usr/sbin/policy-rc.d"
  umount -R "$root"
  rm -rf "$top/wk"
  umount "$top"
  rmdir "$top"
'
e2fsck -fp "$draft" >/dev/null || [ $? = 1 ]
mv "$draft" "$image"
