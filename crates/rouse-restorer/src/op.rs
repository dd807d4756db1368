//! Operations, and the interpreter that runs them.

use std::arch::global_asm;

/// What an operation does. The numbers are known to the assembly below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    /// A system call: `number(args)`.
    Syscall = 0,
    /// `rt_sigreturn` with the stack pointer `args[0]`. Ends the list.
    Sigreturn = 1,
    /// `clone3(args[0], args[1])`; the child goes on with the list at `args[2]`.
    Spawn = 2,
    /// Go on with the list at `args[0]`.
    Jump = 3,
    /// Adds `args[1]` to the 32-bit cell at `args[0]`, atomically, and wakes who waits on it.
    AddAndWake = 4,
    /// Waits until the 32-bit cell at `args[0]` equals `args[1]`.
    WaitEqual = 5,
    /// Stores `args[1]` in the 32-bit cell at `args[0]`.
    Store = 6,
    /// Leaves for another program: the 32-bit cells at `args[0]`, `args[1]` and `args[2]` hold the
    /// addresses of its code, its first operation and its failure record.
    Leave = 7,
    /// `clone(args[0], 0, ...)`, the older call, whose flags a system-call filter can see; the
    /// child goes on with the list at `args[2]`.
    Clone = 8,
}

/// The result of the system call does not matter.
pub const IGNORE_ERROR: u16 = 1 << 8;

/// The result must equal `args[5]`, which the system call then does not use.
pub const EXACT: u16 = 1 << 9;

/// Argument `i` is the address of a 32-bit cell that holds the value: how a descriptor number
/// that an earlier operation returned gets into a later one.
pub const fn indirect(i: usize) -> u16 {
    1 << i
}

/// One operation: 64 bytes, one cache line.
///
/// ```text
///  0        2        4                8        16 ...       56               64
///  +--------+--------+----------------+--------+-- ... -----+----------------+
///  | code   | flags  | syscall number | args[0]|   args[5]  | store          |
///  +--------+--------+----------------+--------+-- ... -----+----------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Op {
    /// A [`Code`].
    pub code: u16,
    /// [`IGNORE_ERROR`], [`indirect`].
    pub flags: u16,
    /// System call number, for [`Code::Syscall`].
    pub number: u32,
    /// Arguments.
    pub args: [u64; 6],
    /// Where the low 32 bits of the result are stored; 0 for nowhere.
    pub store: u64,
}

const _: () = assert!(size_of::<Op>() == 64);

impl Op {
    fn new(code: Code, args: &[u64]) -> Self {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        Self {
            code: code as u16,
            flags: 0,
            number: 0,
            args: all,
            store: 0,
        }
    }

    /// A system call whose failure ends the restore.
    pub fn syscall(number: libc::c_long, args: &[u64]) -> Self {
        Self {
            number: number as u32,
            ..Self::new(Code::Syscall, args)
        }
    }

    /// `rt_sigreturn` with this stack pointer.
    pub fn sigreturn(sp: u64) -> Self {
        Self::new(Code::Sigreturn, &[sp])
    }

    /// `clone3` with the `clone_args` at `args`; the child runs `child`.
    pub fn spawn(args: u64, size: u64, child: u64) -> Self {
        Self::new(Code::Spawn, &[args, size, child])
    }

    /// `clone` with these flags; the child runs `child`.
    pub fn clone_process(flags: u64, child: u64) -> Self {
        Self::new(Code::Clone, &[flags, 0, child])
    }

    /// Leaves for the program whose code, first operation and failure record are named by cells.
    pub fn leave(code: u64, entry: u64, record: u64) -> Self {
        Self::new(Code::Leave, &[code, entry, record])
    }

    /// Go on at `list`.
    pub fn jump(list: u64) -> Self {
        Self::new(Code::Jump, &[list])
    }

    /// Adds to a cell and wakes all its waiters.
    pub fn add_and_wake(cell: u64, value: u32) -> Self {
        Self::new(Code::AddAndWake, &[cell, u64::from(value)])
    }

    /// Waits for a cell to have a value.
    pub fn wait_equal(cell: u64, value: u32) -> Self {
        Self::new(Code::WaitEqual, &[cell, u64::from(value)])
    }

    /// Stores a value in a cell.
    pub fn set_cell(cell: u64, value: u32) -> Self {
        Self::new(Code::Store, &[cell, u64::from(value)])
    }

    /// The same, and any result but `result` is a failure. For calls with at most five arguments.
    pub fn exact(mut self, result: u64) -> Self {
        self.flags |= EXACT;
        self.args[5] = result;
        self
    }

    /// The same, but a failure is not an error.
    pub fn ignore_error(mut self) -> Self {
        self.flags |= IGNORE_ERROR;
        self
    }

    /// The same, with argument `i` read from the cell whose address is given.
    pub fn indirect(mut self, i: usize) -> Self {
        self.flags |= indirect(i);
        self
    }

    /// The same, with the result stored in the cell at `address`.
    pub fn store(mut self, address: u64) -> Self {
        self.store = address;
        self
    }
}

/// What the interpreter sends on its control socket when an operation fails.
///
/// The first field is only for the interpreter; bytes from `tag` on are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct FailureRecord {
    /// Descriptor of the control socket.
    pub control_fd: u64,
    /// [`FAILURE_TAG`].
    pub tag: u64,
    /// Address of the operation that failed.
    pub op: u64,
    /// Negative errno.
    pub result: i64,
}

/// Marks a message on the control socket as a failure.
pub const FAILURE_TAG: u64 = u64::from_le_bytes(*b"rsfailed");

const _: () = assert!(size_of::<FailureRecord>() == 32);

// The interpreter. Constraints:
// - no stack: at the start the old stack is about to be unmapped, and threads begin without one;
// - no absolute address: the page is mapped wherever it is free;
// - `syscall` overwrites rax, rcx and r11 only, so r12 (operation), r13 (failure record) survive;
// - all signals are blocked from before the jump until `rt_sigreturn`, so nothing needs a frame;
// - a child of `Spawn` starts with the parent's registers and rax = 0.
//
// Entry: rdi = first operation, rsi = failure record.
global_asm!(
    r#"
    .pushsection .rodata.rouse_restorer, "a", @progbits
    .balign 64
    .global rouse_restorer_code
    .hidden rouse_restorer_code
rouse_restorer_code:
    mov r12, rdi
    mov r13, rsi
2:  # next operation
    movzx eax, word ptr [r12]
    movzx ebx, word ptr [r12 + 2]
    mov rdi, [r12 + 8]
    mov rsi, [r12 + 16]
    test eax, eax
    jnz 20f

    # Syscall
    mov rdx, [r12 + 24]
    mov r10, [r12 + 32]
    mov r8, [r12 + 40]
    mov r9, [r12 + 48]
    test bl, 0x3f
    jz 9f
    test bl, 1
    jz 3f
    mov edi, dword ptr [rdi]
3:  test bl, 2
    jz 4f
    mov esi, dword ptr [rsi]
4:  test bl, 4
    jz 5f
    mov edx, dword ptr [rdx]
5:  test bl, 8
    jz 6f
    mov r10d, dword ptr [r10]
6:  test bl, 16
    jz 7f
    mov r8d, dword ptr [r8]
7:  test bl, 32
    jz 9f
    mov r9d, dword ptr [r9]
9:  mov eax, dword ptr [r12 + 4]
    syscall
    mov rcx, [r12 + 56]
    test rcx, rcx
    jz 10f
    mov dword ptr [rcx], eax
10: test bh, 2
    jz 12f
    cmp rax, [r12 + 48]
    jne 90f
12: cmp rax, -4095
    jb 11f
    test bh, 1
    jz 90f
11: add r12, 64
    jmp 2b

20: cmp eax, 1
    jne 30f
    # Sigreturn
    mov rsp, rdi
    mov eax, 15
    syscall
    ud2

30: cmp eax, 2
    jne 40f
    # Spawn
    mov eax, 435
    syscall
    test rax, rax
    jz 31f
    mov rcx, [r12 + 56]
    test rcx, rcx
    jz 32f
    mov dword ptr [rcx], eax
32: cmp rax, -4095
    jae 90f
    add r12, 64
    jmp 2b
31: mov r12, [r12 + 24]
    jmp 2b

40: cmp eax, 3
    jne 50f
    # Jump
    mov r12, rdi
    jmp 2b

50: cmp eax, 4
    jne 60f
    # AddAndWake: futex(cell, FUTEX_WAKE_PRIVATE, INT_MAX)
    lock add dword ptr [rdi], esi
    mov esi, 129
    mov edx, 0x7fffffff
    mov eax, 202
    syscall
    add r12, 64
    jmp 2b

60: cmp eax, 5
    jne 70f
    # WaitEqual: futex(cell, FUTEX_WAIT_PRIVATE, seen, NULL)
61: mov edx, dword ptr [rdi]
    cmp edx, dword ptr [r12 + 16]
    je 62f
    mov esi, 128
    xor r10d, r10d
    mov eax, 202
    syscall
    mov rdi, [r12 + 8]
    jmp 61b
62: add r12, 64
    jmp 2b

70: cmp eax, 6
    jne 75f
    # Store
    mov dword ptr [rdi], esi
    add r12, 64
    jmp 2b

75: cmp eax, 7
    jne 80f
    # Leave
    mov edx, dword ptr [rdi]
    mov edi, dword ptr [rsi]
    mov rsi, [r12 + 24]
    mov esi, dword ptr [rsi]
    jmp rdx

80: cmp eax, 8
    jne 95f
    # Clone
    xor esi, esi
    xor edx, edx
    xor r10d, r10d
    xor r8d, r8d
    mov eax, 56
    syscall
    test rax, rax
    jz 31b
    cmp rax, -4095
    jae 90f
    add r12, 64
    jmp 2b

90: # Failure: tell the node which operation, and end the process
    mov [r13 + 16], r12
    mov [r13 + 24], rax
    mov edi, dword ptr [r13]
    lea rsi, [r13 + 8]
    mov edx, 24
    mov eax, 1
    syscall
95: mov edi, 127
    mov eax, 231
    syscall
    ud2
    .global rouse_restorer_code_end
    .hidden rouse_restorer_code_end
rouse_restorer_code_end:
    .popsection
    "#
);

unsafe extern "C" {
    static rouse_restorer_code: u8;
    static rouse_restorer_code_end: u8;
}

/// The interpreter's machine code.
pub fn code() -> &'static [u8] {
    let start = &raw const rouse_restorer_code;
    let end = &raw const rouse_restorer_code_end;
    // SAFETY: both symbols delimit one read-only section of this program, start before end.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}
