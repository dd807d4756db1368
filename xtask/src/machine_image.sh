# Copies this machine's Python with all that it loads below $1: the root of the microVMs that are tested. For long tests Node, too,
# with which the image is twice as large.
set -eu
python=$(readlink -f /usr/bin/python3)
library=$("$python" -I -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
node=${ROUSE_TEST_LONG:+/usr/bin/node}
{
    printf '%s\n' /usr/bin/python3 "$python" "$library" ${node:+"$node" "$(readlink -f "$node")"}
    # A library may be a link, which is copied with what it leads to.
    ldd "$python" ${node:+"$node"} "$library"/lib-dynload/*.so | grep -o '/[^ :]*\.so[^ :]*' | sort -u | while read -r file; do
        printf '%s\n' "$file" "$(readlink -f "$file")"
    done
} | sort -u | while read -r path; do
    # Below /usr, where everything is today; the old places are links.
    case $path in /lib/* | /lib64/* | /bin/*) path=/usr$path ;; esac
    mkdir -p "$1/$(dirname "$path")"
    cp -a "$path" "$1/$path"
done
find "$1" -name __pycache__ -prune -exec rm -r {} +
# All files of an image have one time, so bytecode that is checked against its source's would not be used; and to compile takes long in the
# test bed.
"$python" -m compileall -qq -s "$1" --invalidation-mode unchecked-hash "$1/$library" || true
for name in bin lib lib64; do ln -s "usr/$name" "$1/$name"; done
mkdir "$1/etc"
cp -aL /etc/ld.so.cache "$1/etc"
