//! `reseed.node`: the native module of the Node client. Its one function calls OpenSSL's `RAND_poll` and returns the result.
//!
//! Why: OpenSSL reseeds its generators when it sees a new process id. All instances of a snapshot have the same one, so
//! without this call they would draw the same "random" bytes. `RAND_poll` reseeds the primary generator from the kernel,
//! and the generators of all threads follow before their next output, because they compare the primary's reseed counter.
//!
//! Built by build.rs without the standard library, so that loading it maps two or three pages. Nothing is linked: `napi_*`
//! and `RAND_poll` are exported by the node executable (or by the libcrypto it is linked with) and resolved when it is loaded.
#![no_std]
#![allow(non_camel_case_types, reason = "the names of Node-API")]

use core::ffi::{c_char, c_int, c_void};
use core::ptr;

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
    fn RAND_poll() -> c_int;
}

extern "C" fn poll(env: napi_env, _info: *mut c_void) -> napi_value {
    let mut result = ptr::null_mut();
    // SAFETY: RAND_poll has no preconditions and takes OpenSSL's own locks; `env` is the one this callback was given, and
    // `result` is valid for writes. On failure `result` stays null, which Node-API takes for undefined.
    unsafe {
        let status = RAND_poll();
        napi_create_int32(env, status, &mut result);
    }
    result
}

/// Called by node when it loads the module; what it returns is the module's `exports`.
#[unsafe(no_mangle)]
pub extern "C" fn napi_register_module_v1(env: napi_env, exports: napi_value) -> napi_value {
    let mut function = ptr::null_mut();
    // SAFETY: `env` is valid during this call, the name is 4 bytes long, and `function` is valid for writes.
    let status = unsafe { napi_create_function(env, c"poll".as_ptr(), 4, poll, ptr::null_mut(), &mut function) };
    if status == 0 { function } else { exports }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
