//! Machine code for the program `registers.py`: fills the vector, mask and x87 registers from a
//! record, waits in a system call or in a loop, and says what is in the registers then. No
//! language of a function lets a program do this by itself, and none may touch a register between.
//!
//! ```text
//! record (rdi)       0     2048   2112        2240   2244  2248 2252    2256  2264  2304
//! +------------------+------+------+-----------+------+-----+----+-------+-----+----+---------- - -
//! | zmm0-31, 64 each | k0-7 | x87, 16 each     | mxcsr| fcw | go | ready | fd  |    | the same, found
//! +------------------+------+------------------+------+-----+----+-------+-----+----+---------- - -
//! ```

use std::arch::global_asm;

global_asm!(
    // What every variant has: x87 and MXCSR.
    ".macro fidelity_load_common",
    "fninit",
    "fldcw [rdi + 2244]",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7",
    "fld tbyte ptr [rdi + 2112 + 16 * \\n]",
    ".endr",
    "ldmxcsr [rdi + 2240]",
    ".endm",
    // In the system call if there is a descriptor, in the loop otherwise.
    ".macro fidelity_wait",
    "mov r8, rdi",
    "mov rdi, [r8 + 2256]",
    "lea rsi, [r8 + 2264]",
    "mov edx, 1",
    "mov dword ptr [r8 + 2252], 1",
    "test rdi, rdi",
    "js 3f",
    "xor eax, eax", // read(2)
    "syscall",
    "jmp 4f",
    "3: pause",
    "cmp dword ptr [r8 + 2248], 0",
    "je 3b",
    "4: lea r9, [r8 + 2304]",
    ".endm",
    // Leaves what the C library expects.
    ".macro fidelity_store_common",
    "stmxcsr [r9 + 2240]",
    "fnstcw [r9 + 2244]",
    ".irp n, 7, 6, 5, 4, 3, 2, 1, 0",
    "fstp tbyte ptr [r9 + 2112 + 16 * \\n]",
    ".endr",
    "fninit",
    "mov dword ptr [r8 + 2264], 0x1f80",
    "ldmxcsr [r8 + 2264]",
    "ret",
    ".endm",
    ".pushsection .rodata.fidelity, \"a\"",
    ".globl FIDELITY_SSE, FIDELITY_AVX, FIDELITY_AVX512, FIDELITY_END",
    "FIDELITY_SSE:",
    "fidelity_load_common",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "movups xmm\\n, [rdi + 64 * \\n]",
    ".endr",
    "fidelity_wait",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "movups [r9 + 64 * \\n], xmm\\n",
    ".endr",
    "fidelity_store_common",
    "FIDELITY_AVX:",
    "fidelity_load_common",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "vmovups ymm\\n, [rdi + 64 * \\n]",
    ".endr",
    "fidelity_wait",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "vmovups [r9 + 64 * \\n], ymm\\n",
    ".endr",
    "vzeroupper",
    "fidelity_store_common",
    "FIDELITY_AVX512:",
    "fidelity_load_common",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
    "vmovups zmm\\n, [rdi + 64 * \\n]",
    ".endr",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7",
    "kmovq k\\n, [rdi + 2048 + 8 * \\n]",
    ".endr",
    "fidelity_wait",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
    "vmovups [r9 + 64 * \\n], zmm\\n",
    ".endr",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7",
    "kmovq [r9 + 2048 + 8 * \\n], k\\n",
    ".endr",
    "vzeroupper",
    "fidelity_store_common",
    "FIDELITY_END:",
    ".popsection",
);

unsafe extern "C" {
    static FIDELITY_SSE: u8;
    static FIDELITY_AVX: u8;
    static FIDELITY_AVX512: u8;
    static FIDELITY_END: u8;
}

/// A Python dictionary of the variants, by the flag of `/proc/cpuinfo` that each needs.
pub fn as_python() -> String {
    let starts = [
        ("sse2", &raw const FIDELITY_SSE),
        ("avx", &raw const FIDELITY_AVX),
        ("avx512bw", &raw const FIDELITY_AVX512),
        ("", &raw const FIDELITY_END),
    ];
    let variant = |pair: &[(&str, *const u8)]| {
        let (start, end) = (pair[0].1, pair[1].1);
        // SAFETY: the symbols are in one section, in this order, so between two of them lie bytes of it.
        let code = unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) };
        let hex: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("'{}': bytes.fromhex('{hex}')", pair[0].0)
    };
    let variants: Vec<String> = starts.windows(2).map(variant).collect();
    format!("{{{}}}", variants.join(", "))
}
