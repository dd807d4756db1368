//! A native module for Node: `clone()` makes a copy of the process as pid 1 of a new pid namespace with the bare system call
//! and returns what that returns; `clone.wait()` reaps all children, `clone.exit()` ends
//! a copy, which has none of the threads that node's own way to exit would wait for. Compiled by the test that uses it.
#![allow(non_camel_case_types, reason = "the names of Node-API")]

use std::ffi::{c_char, c_int, c_long, c_void};
use std::ptr;

type napi_env = *mut c_void;
type napi_value = *mut c_void;
type napi_callback = extern "C" fn(napi_env, *mut c_void) -> napi_value;

unsafe extern "C" {
    fn napi_create_function(
        env: napi_env,
        name: *const c_char,
        length: usize,
        callback: napi_callback,
        data: *mut c_void,
        result: *mut napi_value,
    ) -> c_int;
    fn napi_create_int32(env: napi_env, value: i32, result: *mut napi_value) -> c_int;
    fn napi_set_named_property(env: napi_env, object: napi_value, name: *const c_char, value: napi_value) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn wait(status: *mut c_int) -> c_int;
    fn _exit(status: c_int) -> !;
    fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
}

const SYS_CLONE: c_long = 56;
const SIGCHLD: c_long = 17;
const CLONE_NEWPID: c_long = 0x2000_0000;

const MADV_DOFORK: c_int = 11;

/// V8 keeps its code from being inherited (MADV_DONTFORK), without which a child cannot run.
fn inherit_all_memory() {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    for line in maps.lines() {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let parse = |text| usize::from_str_radix(text, 16).ok();
        let Some((Some(start), Some(end))) = range.map(|(start, end)| (parse(start), parse(end))) else { continue };
        // SAFETY: DOFORK changes nothing of this process; where it is not allowed, the call fails and changes nothing.
        unsafe { madvise(start as *mut c_void, end.wrapping_sub(start), MADV_DOFORK) };
    }
}

extern "C" fn clone(env: napi_env, _info: *mut c_void) -> napi_value {
    inherit_all_memory();
    let mut result = ptr::null_mut();
    // SAFETY: without CLONE_VM the child has its own copy of memory and goes on here; only this thread exists in it, and
    // the script only uses what this thread can do alone.
    let pid = unsafe { syscall(SYS_CLONE, SIGCHLD | CLONE_NEWPID, 0 as c_long, 0 as c_long, 0 as c_long, 0 as c_long) };
    // SAFETY: `env` is the one this callback was given; `result` is valid for writes.
    unsafe { napi_create_int32(env, pid as i32, &mut result) };
    result
}

extern "C" fn reap(_env: napi_env, _info: *mut c_void) -> napi_value {
    // SAFETY: a null status is allowed.
    while unsafe { wait(ptr::null_mut()) } > 0 {}
    ptr::null_mut()
}

extern "C" fn exit(_env: napi_env, _info: *mut c_void) -> napi_value {
    // SAFETY: it only ends the process.
    unsafe { _exit(0) }
}

/// Called by node when it loads the module.
#[unsafe(no_mangle)]
pub extern "C" fn napi_register_module_v1(env: napi_env, _exports: napi_value) -> napi_value {
    let (mut main, mut wait, mut exit_value) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    // SAFETY: `env` is valid during this call, the names are C strings of the given lengths, and the results are valid for writes.
    unsafe {
        napi_create_function(env, c"clone".as_ptr(), 5, clone, ptr::null_mut(), &mut main);
        napi_create_function(env, c"wait".as_ptr(), 4, reap, ptr::null_mut(), &mut wait);
        napi_create_function(env, c"exit".as_ptr(), 4, exit, ptr::null_mut(), &mut exit_value);
        napi_set_named_property(env, main, c"wait".as_ptr(), wait);
        napi_set_named_property(env, main, c"exit".as_ptr(), exit_value);
    }
    main
}
