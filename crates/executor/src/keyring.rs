//! Session keyrings: what a step finds when it asks the kernel for keys.
//!
//! Keys are not part of any namespace. A process that was given no session keyring has that of
//! whoever started it, so a step would possess the server's keys. Each container has one of its own,
//! as with stock's runtime; it goes away with the last process that has it.

use std::ffi::CString;
use std::io;

use crate::sys::check;

/// What may be done with it: by those who have it everything; by others of its owner, the server's
/// user, all but change it, so that a later process of the container can find it by its name.
const PERMISSIONS: u32 = 0x3f1b_0000;
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
const KEYCTL_SETPERM: libc::c_int = 5;

/// A name that no other container has, of this server or another one.
pub(crate) fn new_name() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("_ses.{:032x}", u128::from_le_bytes(bytes)))
}

/// Makes the keyring of that name, or finds it, and makes it the calling process's session keyring
/// in the place of the one it has. Call it with the rights of the server's user.
///
/// Where the kernel has no keyrings, or nobody in the server's container may ask for one, there is
/// none to be protected from either: nothing is done.
pub(crate) fn join(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the name is a C string and lives through the call.
    let joined = check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr())
    });
    let keyring = match joined.map_err(|error| (error.raw_os_error(), error)) {
        Ok(keyring) => keyring,
        Err((Some(libc::ENOSYS | libc::EPERM), _)) => return Ok(()),
        Err((_, error)) => return Err(error),
    };
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, keyring, PERMISSIONS) })
        .map(drop)
}
