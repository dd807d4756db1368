//! The frame from which `rt_sigreturn` loads a thread's registers.
//!
//! Layout: `struct rt_sigframe` of the kernel (arch/x86/include/asm/sigframe.h), without the
//! return address at its start, followed by the extended state in standard XSAVE format.

use std::arch::x86_64::__cpuid_count;

use crate::program::Builder;

/// What a thread resumes with.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// General registers in the order of `struct sigcontext`: r8 to r15, rdi, rsi, rbp, rbx,
    /// rdx, rax, rcx, rsp, rip, eflags.
    pub registers: [u64; 18],
    /// Blocked signals.
    pub signal_mask: u64,
    /// Alternate signal stack: address, flags, size.
    pub alt_stack: (u64, i32, u64),
    /// XSAVE area in standard format.
    pub xsave: &'a [u8],
}

/// Bytes of the legacy region and the XSAVE header.
const XSAVE_MIN: usize = 576;
/// Offset in the legacy region at which software may keep its own bytes.
const SW_RESERVED: usize = 464;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
const USER_CS: u64 = 0x33;
const USER_DS: u64 = 0x2b;
/// XTILECFG and XTILEDATA: a process has them only after asking for permission.
const DYNAMIC_FEATURES: u64 = 0b11 << 17;

/// The XSAVE features that every process has, and the size of the area that holds them.
///
/// The kernel refuses a frame that claims more than the process's own area. Features that are
/// switched on by request (AMX tiles) are not part of it.
pub fn xsave_layout() -> (u64, usize) {
    let leaf = __cpuid_count(0xd, 0);
    // User components of XCR0: PKRU (bit 9) counts, supervisor states never show up here.
    let features = (u64::from(leaf.edx) << 32 | u64::from(leaf.eax)) & !DYNAMIC_FEATURES;
    let size = (2..63)
        .filter(|i| features & (1 << i) != 0)
        .map(|i| {
            let component = __cpuid_count(0xd, i);
            (component.eax + component.ebx) as usize
        })
        .max()
        .unwrap_or(0)
        .max(XSAVE_MIN);
    (features, size)
}

/// Puts the frame into the program and returns the stack pointer for `rt_sigreturn`.
pub fn build(program: &mut Builder, frame: &Frame<'_>) -> u64 {
    let (features, size) = xsave_layout();
    let mut xsave = frame.xsave.to_vec();
    xsave.resize(size, 0);
    let mut software = [0u8; 48];
    software[0..4].copy_from_slice(&MAGIC1.to_le_bytes());
    software[4..8].copy_from_slice(&(size as u32 + 4).to_le_bytes());
    software[8..16].copy_from_slice(&features.to_le_bytes());
    software[16..20].copy_from_slice(&(size as u32).to_le_bytes());
    xsave[SW_RESERVED..SW_RESERVED + 48].copy_from_slice(&software);
    xsave.extend_from_slice(&MAGIC2.to_le_bytes());
    let fpstate = program.bytes(&xsave, 64);

    let (alt_sp, alt_flags, alt_size) = frame.alt_stack;
    let mut words = vec![
        UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
        0, // uc_link
        alt_sp,
        alt_flags as u32 as u64,
        alt_size,
    ];
    words.extend_from_slice(&frame.registers);
    words.push(USER_CS | USER_DS << 48); // cs, gs, fs, ss
    words.extend_from_slice(&[0, 0, 0, 0]); // err, trapno, oldmask, cr2
    words.push(fpstate);
    words.extend_from_slice(&[0; 8]);
    words.push(frame.signal_mask);
    words.extend_from_slice(&[0; 16]); // siginfo
    program.bytes(
        &words
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect::<Vec<u8>>(),
        16,
    )
}
