//! Ways out that must be closed.

use crate::driver::Node;

/// Python that calls the system directly and names the outcome.
const CALL: &str = "
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    print(name, 'ok' if result >= 0 else errno.errorcode[ctypes.get_errno()])
def attempt(name, action):
    try: action(); print(name, 'ok')
    except OSError as error: print(name, errno.errorcode[error.errno])
";

pub fn escapes_are_refused(node: &Node) {
    let script = format!(
        "{CALL}
call('mount', 165, b'none', b'/tmp', b'tmpfs', 0, None)
call('unshare user', 272, 0x10000000)
call('clone user', 56, 0x10000000 | 17, 0, 0, 0, 0)
call('clone3', 435, None, 0)
call('setns', 308, 0, 0)
call('ptrace', 101, 0, 0, 0, 0)
call('bpf', 321, 0, None, 0)
call('io_uring', 425, 1, None)
call('userfaultfd', 323, 0)
call('keyctl', 250, 0, 0)
call('personality set', 135, 0x0040000)
call('personality get', 135, 0xffffffff)
call('process_vm_readv', 310, 1, None, 0, None, 0, 0)
call('open_by_handle_at', 304, -1, None, 0)
call('unknown', 470)
call('x32 getpid', 0x40000000 + 39)
attempt('packet', lambda: socket.socket(17, 3, 0))
attempt('raw', lambda: socket.socket(2, 3, 1))
attempt('vsock', lambda: socket.socket(40, 1, 0))
attempt('alg', lambda: socket.socket(38, 5, 0))
attempt('netlink route', lambda: socket.socket(16, 3, 0))
attempt('netlink audit', lambda: socket.socket(16, 3, 9))
attempt('setuid', lambda: os.setuid(0))
attempt('setgroups', lambda: os.setgroups([0]))
attempt('mknod', lambda: os.mknod('/tmp/d', 0o20666, 0x801))
attempt('chown', lambda: (open('/tmp/f', 'w').close(), os.chown('/tmp/f', 0, 0)))
attempt('kill init', lambda: os.kill(1, 9))
attempt('core pattern', lambda: open('/proc/sys/kernel/core_pattern', 'w'))
for path, mode in [('/proc/sysrq-trigger', 'w'), ('/proc/kcore', 'rb'), ('/proc/kmsg', 'rb'), ('/proc/keys', 'w')]:
    # Not every kernel has them.
    try: open(path, mode); print(path, 'ok')
    except OSError: pass
attempt('init root', lambda: os.listdir('/proc/1/root'))
attempt('hostname', lambda: socket.sethostname('x'))
attempt('nice', lambda: os.setpriority(0, 0, -5))
"
    );
    let expected = "mount EPERM\nunshare user EPERM\nclone user EPERM\nclone3 ENOSYS\nsetns EPERM\nptrace EPERM\nbpf EPERM\nio_uring ENOSYS\n\
        userfaultfd EPERM\nkeyctl EPERM\npersonality set EPERM\npersonality get ok\nprocess_vm_readv EPERM\nopen_by_handle_at EPERM\n\
        unknown ENOSYS\nx32 getpid ENOSYS\npacket EAFNOSUPPORT\nraw EAFNOSUPPORT\nvsock EAFNOSUPPORT\nalg EAFNOSUPPORT\nnetlink route ok\n\
        netlink audit EAFNOSUPPORT\nsetuid EPERM\nsetgroups EPERM\nmknod EPERM\nchown EPERM\nkill init EPERM\n\
        core pattern EACCES\ninit root EACCES\nhostname EPERM\nnice EACCES\n";
    assert_eq!(node.python(&script), expected);
    // A set-user-id program does not change the user.
    let output = node.shell("find /usr/bin -perm -4000 2>/dev/null | head -1; mount 2>/dev/null | head -0; su -c id 2>/dev/null; id -u");
    assert!(output.ends_with("993\n"), "{output}");
    // The 32-bit ABI: int 0x80 with getpid. The process is killed, so nothing is printed.
    let script = "
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7); code.write(bytes.fromhex('b814000000cd80c3'))
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
print('before', flush=True)
ctypes.CFUNCTYPE(ctypes.c_int)(address)()
print('after')
";
    assert_eq!(node.python(script), "before\n");
}

pub fn init_is_out_of_reach(node: &Node) {
    let script = format!(
        "{CALL}
for name in ['mem', 'environ', 'maps', 'auxv', 'fd', 'exe']:
    path = '/proc/1/' + name
    attempt(name, lambda: os.readlink(path) if name == 'exe' else os.listdir(path) if name == 'fd' else open(path).read())
print(open('/proc/1/cmdline').read().strip(chr(0)))
"
    );
    assert_eq!(
        node.python(&script),
        "mem EACCES\nenviron EACCES\nmaps EACCES\nauxv EACCES\nfd EACCES\nexe EACCES\nrouse-spawner\n"
    );
}
