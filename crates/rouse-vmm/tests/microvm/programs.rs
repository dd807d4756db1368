//! Guests without a kernel: machine code for a processor that has just been started. It may lie anywhere.

use std::arch::global_asm;

/// Defines code between two labels, and the function that has its bytes.
macro_rules! program {
    ($name:ident, $start:literal, $end:literal, $about:literal, [$($line:literal),* $(,)?]) => {
        global_asm!(
            ".pushsection .rodata",
            concat!(".global ", $start), concat!(".global ", $end),
            concat!($start, ":"),
            $($line,)*
            concat!($end, ":"),
            ".popsection",
        );

        #[doc = $about]
        pub fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = $start]
                static START: u8;
                #[link_name = $end]
                static END: u8;
            }
            // SAFETY: both are labels of one section of this program that is only read, the second behind the first.
            unsafe {
                let (start, end) = (&raw const START, &raw const END);
                std::slice::from_raw_parts(start, end.addr() - start.addr())
            }
        }
    };
}

program!(
    undefined,
    "rouse_test_undefined",
    "rouse_test_undefined_end",
    "An instruction that there is not, with no handler.",
    ["ud2"]
);

program!(
    spinning,
    "rouse_test_spinning",
    "rouse_test_spinning_end",
    "Goes round for ever.",
    ["1: jmp 1b"]
);

program!(
    halted,
    "rouse_test_halted",
    "rouse_test_halted_end",
    "Nothing wakes it up.",
    ["cli", "hlt"]
);

program!(
    reading,
    "rouse_test_reading",
    "rouse_test_reading_end",
    "Reads a port for ever.",
    ["1: in al, 0x64", "jmp 1b"]
);

program!(
    any_port,
    "rouse_test_any_port",
    "rouse_test_any_port_end",
    "Writes to and reads from all ports below 0x1000 and an address without memory, and switches off.",
    [
        "xor edx, edx",
        "1: mov al, 0",
        "out dx, al",
        "out dx, eax",
        "in al, dx",
        "in eax, dx",
        "inc dx",
        "cmp dx, 0x1000",
        "jne 1b",
        "mov dword ptr [0x10000000], eax",
        "mov eax, dword ptr [0x10000000]",
        // What is not there reads as ones.
        "cmp eax, -1",
        "jne 2f",
        "mov dx, 0x600",
        "mov al, 0x34",
        "out dx, al",
        "hlt",
        "2: ud2",
    ]
);

program!(
    any_register,
    "rouse_test_any_register",
    "rouse_test_any_register_end",
    "Writes anything to all registers of three devices, eight times, and switches off.",
    [
        // A mapping of the fourth GiB.
        "mov dword ptr [0xa018], 0xc0000083",
        "mov ebx, 8",
        "1: mov edi, 0xd0000000",
        "2: mov dword ptr [rdi], eax",
        "mov ecx, dword ptr [rdi]",
        "add eax, 0x9e3779b1",
        "add edi, 4",
        "cmp edi, 0xd0003000",
        "jne 2b",
        "dec ebx",
        "jne 1b",
        "mov dx, 0x600",
        "mov al, 0x34",
        "out dx, al",
        "hlt",
    ]
);

program!(
    any_queue,
    "rouse_test_any_queue",
    "rouse_test_any_queue_end",
    "Sets three devices up as a driver does, with queues full of anything, and tells them to look; 64 times. Then switches off.",
    [
        "mov dword ptr [0xa018], 0xc0000083",
        "mov r12d, 64",
        "mov r13d, 0x2545f491",
        // The queues: descriptors at 32 MiB, what is available 16 KiB behind them, what was used 32 KiB behind them.
        "1: mov edi, 0x2000000",
        "2: mov eax, r13d",
        "shl eax, 13",
        "xor r13d, eax",
        "mov eax, r13d",
        "shr eax, 17",
        "xor r13d, eax",
        "mov eax, r13d",
        "shl eax, 5",
        "xor r13d, eax",
        "mov dword ptr [rdi], r13d",
        "add edi, 4",
        "cmp edi, 0x2010000",
        "jne 2b",
        // In three of four rounds they look right: addresses in these 64 KiB, up to 8 KiB, chains that may end, known requests.
        "test r12b, 3",
        "jz 5f",
        "mov edi, 0x2000000",
        "3: and dword ptr [rdi], 0xffff",
        "or dword ptr [rdi], 0x2000000",
        "mov dword ptr [rdi + 4], 0",
        "and dword ptr [rdi + 8], 0x1fff",
        "and dword ptr [rdi + 12], 0x00ff0003",
        "add edi, 16",
        "cmp edi, 0x2001000",
        "jne 3b",
        // The numbers of descriptors behind the flags and the index.
        "mov edi, 0x2004004",
        "4: and dword ptr [rdi], 0x00ff00ff",
        "add edi, 4",
        "cmp edi, 0x2004204",
        "jne 4b",
        // In one of these, what descriptors lead to are small numbers.
        "test r12b, 1",
        "jz 5f",
        "mov edi, 0x2009000",
        "6: and dword ptr [rdi], 7",
        "add edi, 4",
        "cmp edi, 0x2010000",
        "jne 6b",
        // Each device: reset, known, driven, VIRTIO_F_VERSION_1 and no more.
        "5: mov ebx, 0xd0000000",
        "7: mov dword ptr [rbx + 0x70], 0",
        "mov dword ptr [rbx + 0x70], 1",
        "mov dword ptr [rbx + 0x70], 3",
        "mov dword ptr [rbx + 0x24], 0",
        "mov dword ptr [rbx + 0x20], 0",
        "mov dword ptr [rbx + 0x24], 1",
        "mov dword ptr [rbx + 0x20], 1",
        "mov dword ptr [rbx + 0x70], 11",
        "xor esi, esi",
        "8: mov dword ptr [rbx + 0x30], esi",
        "mov eax, dword ptr [rbx + 0x34]",
        "mov dword ptr [rbx + 0x38], eax",
        "mov dword ptr [rbx + 0x80], 0x2000000",
        "mov dword ptr [rbx + 0x84], 0",
        "mov dword ptr [rbx + 0x90], 0x2004000",
        "mov dword ptr [rbx + 0x94], 0",
        "mov dword ptr [rbx + 0xa0], 0x2008000",
        "mov dword ptr [rbx + 0xa4], 0",
        "mov dword ptr [rbx + 0x44], 1",
        "inc esi",
        "cmp esi, 4",
        "jne 8b",
        "mov dword ptr [rbx + 0x70], 15",
        // Tells it of each queue, and gives it time.
        "mov ecx, 32",
        "9: mov esi, ecx",
        "and esi, 3",
        "mov dword ptr [rbx + 0x50], esi",
        "mov eax, dword ptr [rbx + 0x60]",
        "mov dword ptr [rbx + 0x64], eax",
        "dec ecx",
        "jne 9b",
        "add ebx, 0x1000",
        "cmp ebx, 0xd0003000",
        "jne 7b",
        "dec r12d",
        "jne 1b",
        "mov dx, 0x600",
        "mov al, 0x34",
        "out dx, al",
        "hlt",
    ]
);
