//! The template host: holds a function's memory and makes clones of it.
//!
//! ```text
//!  node ---- control ----> template host      memory mapped, no code of the function ever run
//!                            | clone3(CLONE_VM)
//!  node ---- control' ---> porter             shares the memory; enters a sandbox and waits there
//!                            | clone3(set_tid = 2), copies the memory
//!                          instance           makes the rest of the process and resumes
//! ```
//! Everything slow about a sandbox (namespaces, cgroups) is done by the porter ahead of a
//! request: it is a process of its own but without memory of its own. A request then costs one
//! copy of the page tables (Catalyzer's sfork, with the sandbox already around it).

use rouse_restorer::op::Op;

use super::Context;
use super::threads::drop_bounding_set;
use super::waiting_room::{ANCILLARY_LEN, CONTROL_LEN, receiver};

const CLONE_ARGS_SIZE: u64 = 80;
/// What a clone enters: all namespaces of the sandbox, by its init's pidfd.
const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;
/// The first pid that a sandbox gives out after its init's. Every function's main process has it,
/// because blanks are the first processes in their sandboxes, too.
pub(super) const FIRST_PID: i32 = 2;

/// What a template host and its porters say on their control sockets.
pub const READY: u8 = b'r';

impl Context<'_> {
    /// Waits for orders for ever. Each order brings six or more descriptors, which the kernel
    /// puts behind the control socket: the porter's control socket; log, client, task, as in a
    /// restore; the pidfd of the sandbox's init, and the entrances of its control groups.
    pub(super) fn serve_clones(&mut self, list: &mut Vec<Op>, instance: u64) {
        let control = self.fds.control();
        let received = control + 1;
        let ready = self.builder.bytes(&[READY], 8);
        let buffer = self.builder.words(&[0]);
        let header = receiver(&mut self.builder, buffer, 8);

        self.populate_template(list);
        self.occupy_below_control(list);
        let keep = [
            self.fds.pool(),
            self.fds.kept_pool(),
            libc::O_CLOEXEC as u64,
        ];
        list.push(Op::syscall(libc::SYS_dup3, &keep));
        list.push(Op::syscall(
            libc::SYS_close_range,
            &[received, u64::from(u32::MAX), 0],
        ));
        list.push(Op::syscall(libc::SYS_write, &[control, ready, 1]).exact(1));

        let porter = self.porter(instance);
        let porter_args = self.builder.words(&[
            (libc::CLONE_VM | libc::CLONE_PARENT) as u64,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
        let loop_at = self.builder.next_list();
        let order = [
            // The kernel writes the length that it used into the header.
            Op::set_cell(header + CONTROL_LEN, ANCILLARY_LEN as u32),
            Op::syscall(
                libc::SYS_recvmsg,
                &[control, header, libc::MSG_CMSG_CLOEXEC as u64],
            )
            .exact(1),
            Op::spawn(porter_args, CLONE_ARGS_SIZE, porter),
            Op::syscall(libc::SYS_close_range, &[received, u64::from(u32::MAX), 0]),
            Op::jump(loop_at),
        ];
        let at = self.builder.list(&order);
        assert_eq!(at, loop_at, "a list lies where the builder said it would");
        list.push(Op::jump(at));
    }

    /// Enters a sandbox, waits for the request, makes the clone, and is gone. Constraints:
    /// - cgroups first, while the files can still be used with the rights of their opener;
    /// - namespaces in one step; then capabilities from the bounding set, because entering a user
    ///   namespace fills it again;
    /// - the filter only after everything that it denies. A clone with several threads needs
    ///   `clone3` for their ids, so its filter has to wait until they exist;
    /// - the porter must not write to memory: it is the template's.
    fn porter(&mut self, instance: u64) -> u64 {
        let control = self.fds.control();
        let own_control = control + 1;
        let pidfd = control + 5;
        let ready = self.builder.bytes(&[READY], 8);
        let scratch = self.builder.words(&[0]);
        let zero = self.builder.bytes(b"0", 1);
        let mut list = vec![Op::syscall(
            libc::SYS_dup3,
            &[own_control, control, libc::O_CLOEXEC as u64],
        )];
        for i in 0..self.environment.cgroups as u64 {
            list.push(Op::syscall(libc::SYS_write, &[control + 6 + i, zero, 1]).exact(1));
        }
        list.push(Op::syscall(libc::SYS_setns, &[pidfd, NAMESPACES as u64]));
        // The host's root has no name in the sandbox's user namespace, and nobody without a name can
        // make a file there: become the namespace's root.
        list.push(Op::syscall(libc::SYS_setgroups, &[0, 0]));
        list.push(Op::syscall(libc::SYS_setresgid, &[0, 0, 0]));
        list.push(Op::syscall(libc::SYS_setresuid, &[0, 0, 0]));
        drop_bounding_set(&mut list);
        self.enter_task(&mut list);
        let task = self.fds.task();
        list.push(Op::syscall(
            libc::SYS_close_range,
            &[task, u64::from(u32::MAX), 0],
        ));
        list.push(Op::syscall(libc::SYS_close, &[own_control]));
        if self.filtered_ahead {
            self.drop_groups(&mut list);
            self.seccomp(&mut list);
        }
        list.push(Op::syscall(libc::SYS_write, &[control, ready, 1]).exact(1));
        list.push(Op::syscall(libc::SYS_read, &[control, scratch, 1]).exact(1));
        if self.filtered_ahead {
            list.push(Op::clone_process(libc::CLONE_PARENT as u64, instance));
        } else {
            let pid = self.builder.cell(self.snapshot.threads[0].tid as u32);
            let args =
                self.builder
                    .words(&[libc::CLONE_PARENT as u64, 0, 0, 0, 0, 0, 0, 0, pid, 1]);
            list.push(Op::spawn(args, CLONE_ARGS_SIZE, instance));
        }
        list.push(Op::syscall(libc::SYS_exit_group, &[0]));
        self.builder.list(&list)
    }
}
