//! What functions may not ask of the kernel, each with the reason.

use libc::{
    SYS__sysctl, SYS_acct, SYS_add_key, SYS_adjtimex, SYS_bpf, SYS_chroot, SYS_clock_adjtime,
    SYS_clock_settime, SYS_clone, SYS_clone3, SYS_delete_module, SYS_fanotify_init,
    SYS_finit_module, SYS_fsconfig, SYS_fsmount, SYS_fsopen, SYS_fspick, SYS_init_module,
    SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup, SYS_ioctl, SYS_ioperm, SYS_iopl,
    SYS_kcmp, SYS_kexec_file_load, SYS_kexec_load, SYS_keyctl, SYS_lookup_dcookie,
    SYS_migrate_pages, SYS_modify_ldt, SYS_mount, SYS_mount_setattr, SYS_move_mount,
    SYS_move_pages, SYS_nfsservctl, SYS_open_by_handle_at, SYS_open_tree, SYS_perf_event_open,
    SYS_personality, SYS_pidfd_getfd, SYS_pivot_root, SYS_process_madvise, SYS_process_vm_readv,
    SYS_process_vm_writev, SYS_ptrace, SYS_quotactl, SYS_quotactl_fd, SYS_reboot, SYS_request_key,
    SYS_setns, SYS_settimeofday, SYS_socket, SYS_swapoff, SYS_swapon, SYS_sysfs, SYS_syslog,
    SYS_umount2, SYS_unshare, SYS_uselib, SYS_userfaultfd, SYS_ustat, SYS_vhangup,
};

use super::compile::{Condition, Rule, Verdict};

/// Newest system call that has been looked at (`file_setattr`, Linux 6.17). Newer ones do not exist for functions.
pub const LAST_KNOWN: u32 = 469;

/// `open_tree_attr`, Linux 6.15; not in every version of the C library's headers.
const SYS_OPEN_TREE_ATTR: libc::c_long = 467;

const EPERM: Verdict = Verdict::Errno(libc::EPERM);
const ENOSYS: Verdict = Verdict::Errno(libc::ENOSYS);

/// Flags of `clone` that make namespaces.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// Everything that is not allowed; what is not listed is.
pub const RULES: &[Rule] = &[
    Rule {
        calls: &[
            SYS_mount,
            SYS_umount2,
            SYS_mount_setattr,
            SYS_fsopen,
            SYS_fsconfig,
            SYS_fsmount,
            SYS_fspick,
            SYS_move_mount,
            SYS_open_tree,
            SYS_OPEN_TREE_ATTR,
            SYS_pivot_root,
            SYS_chroot,
        ],
        verdict: EPERM,
        reason: "the view of the file system is fixed; mounting is a wide road to kernel bugs",
    },
    Rule {
        calls: &[SYS_unshare, SYS_setns],
        verdict: EPERM,
        reason: "a user namespace of its own would give a function capabilities again, and with them kernel surface",
    },
    Rule {
        calls: &[SYS_clone],
        verdict: Verdict::If(
            Condition::AnyBit {
                argument: 0,
                mask: NAMESPACES,
            },
            libc::EPERM,
        ),
        reason: "as unshare",
    },
    Rule {
        calls: &[SYS_clone3],
        verdict: ENOSYS,
        reason: "its flags lie in memory, where a filter cannot look; C libraries fall back to clone",
    },
    Rule {
        calls: &[
            SYS_ptrace,
            SYS_process_vm_readv,
            SYS_process_vm_writev,
            SYS_process_madvise,
            SYS_pidfd_getfd,
            SYS_kcmp,
        ],
        verdict: EPERM,
        reason: "no process looks into another; ptrace also rewrites system calls behind older filters",
    },
    Rule {
        calls: &[SYS_bpf],
        verdict: EPERM,
        reason: "loads programs into the kernel",
    },
    Rule {
        calls: &[SYS_perf_event_open],
        verdict: EPERM,
        reason: "observes other processes and the kernel; a history of holes",
    },
    Rule {
        calls: &[SYS_userfaultfd],
        verdict: EPERM,
        reason: "stops the kernel in the middle of an operation, which makes races reliable",
    },
    Rule {
        calls: &[
            SYS_io_uring_setup,
            SYS_io_uring_enter,
            SYS_io_uring_register,
        ],
        verdict: ENOSYS,
        reason: "does what other system calls do without passing this filter, and cannot be snapshotted; programs fall back",
    },
    Rule {
        calls: &[SYS_keyctl, SYS_add_key, SYS_request_key],
        verdict: EPERM,
        reason: "keyrings are not separated by sandbox",
    },
    Rule {
        calls: &[SYS_kexec_load, SYS_kexec_file_load, SYS_reboot],
        verdict: EPERM,
        reason: "replaces or stops the host's kernel",
    },
    Rule {
        calls: &[SYS_init_module, SYS_finit_module, SYS_delete_module],
        verdict: EPERM,
        reason: "changes the host's kernel",
    },
    Rule {
        calls: &[SYS_open_by_handle_at],
        verdict: EPERM,
        reason: "opens any file of a file system, masked ones too",
    },
    Rule {
        calls: &[SYS_personality],
        // Asking (0xffffffff) and the usual one (0) are harmless.
        verdict: Verdict::Unless(
            Condition::OneOf {
                argument: 0,
                values: &[0xffff_ffff, 0],
            },
            libc::EPERM,
        ),
        reason: "switches off address randomisation, and on old ABIs",
    },
    Rule {
        calls: &[
            SYS_swapon,
            SYS_swapoff,
            SYS_acct,
            SYS_quotactl,
            SYS_quotactl_fd,
        ],
        verdict: EPERM,
        reason: "administration of the host",
    },
    Rule {
        calls: &[SYS_iopl, SYS_ioperm],
        verdict: EPERM,
        reason: "direct access to hardware",
    },
    Rule {
        calls: &[SYS_modify_ldt],
        verdict: EPERM,
        reason: "16-bit segments: no use, and a history of holes",
    },
    Rule {
        calls: &[
            SYS_settimeofday,
            SYS_clock_settime,
            SYS_adjtimex,
            SYS_clock_adjtime,
        ],
        verdict: EPERM,
        reason: "the clock is the host's",
    },
    Rule {
        calls: &[SYS_syslog],
        verdict: EPERM,
        reason: "the kernel's log tells addresses, and about neighbours",
    },
    Rule {
        calls: &[SYS_vhangup],
        verdict: EPERM,
        reason: "terminals are the host's",
    },
    Rule {
        calls: &[
            SYS_lookup_dcookie,
            SYS_nfsservctl,
            SYS_sysfs,
            SYS__sysctl,
            SYS_uselib,
            SYS_ustat,
        ],
        verdict: ENOSYS,
        reason: "obsolete; absent from many kernels",
    },
    Rule {
        calls: &[SYS_fanotify_init],
        verdict: EPERM,
        reason: "watches files for other processes",
    },
    Rule {
        calls: &[SYS_move_pages, SYS_migrate_pages],
        verdict: EPERM,
        reason: "acts on other processes; placement is the host's",
    },
    Rule {
        calls: &[SYS_socket],
        verdict: Verdict::Unless(Condition::Socket, libc::EAFNOSUPPORT),
        reason: "UNIX, IPv4, IPv6 and netlink's route family are what programs use; every other family is surface (packet, vsock, alg ...)",
    },
    Rule {
        calls: &[SYS_ioctl],
        verdict: Verdict::If(
            Condition::OneOf {
                argument: 1,
                values: &[libc::TIOCSTI, TIOCLINUX],
            },
            libc::EPERM,
        ),
        reason: "types into a terminal, which its owner would take for his own",
    },
];

/// `TIOCLINUX`: pastes into a virtual console.
const TIOCLINUX: u64 = 0x541C;
