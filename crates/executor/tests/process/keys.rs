//! Keys of the kernel: this program holds one, which no step may find.

use std::ffi::CStr;
use std::io::{BufRead, Read, Write};
use std::path::Path;

use executor::{ProcessMount, ProcessSpec, Stdio};

use crate::harness::{Bench, block_on, content, memory_file, no_streams};

crate::harness::tests![
    a_step_has_a_session_keyring_of_its_own,
    processes_of_a_container_share_their_session_keyring,
    keys_cannot_be_asked_for_inside_the_sandbox,
];

/// Makes this program say what it finds; the argument after it is the name of a key to add.
pub const PROBE_ARGUMENT: &str = "probe-keys";
/// What the server holds.
const SERVERS: &CStr = c"cooperage-test-of-the-server";
const SESSION_KEYRING: i32 = -3;
const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
const KEYCTL_DESCRIBE: i32 = 6;
const KEYCTL_SEARCH: i32 = 10;

fn answer(rc: libc::c_long) -> Result<libc::c_long, std::io::Error> {
    match rc {
        0.. => Ok(rc),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn add(name: &CStr) -> Result<libc::c_long, std::io::Error> {
    let (kind, value) = (c"user", b"x");
    // SAFETY: C strings, and a value with its length.
    answer(unsafe {
        let (kind, name) = (kind.as_ptr(), name.as_ptr());
        libc::syscall(libc::SYS_add_key, kind, name, value, 1, SESSION_KEYRING)
    })
}

fn find(name: &CStr) -> Result<libc::c_long, std::io::Error> {
    let kind = c"user";
    // SAFETY: C strings; the last number says that what is found is not linked anywhere.
    answer(unsafe {
        let (kind, name) = (kind.as_ptr(), name.as_ptr());
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_SEARCH,
            SESSION_KEYRING,
            kind,
            name,
            0,
        )
    })
}

/// Gives this program a session keyring with a key in it. On a machine that lets nobody have keys
/// there is none, and steps cannot have any either.
pub fn hold_a_key() {
    let no_name = std::ptr::null::<libc::c_char>();
    // SAFETY: no name asks for a new keyring.
    let joined =
        answer(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, no_name) });
    if joined.is_ok() {
        add(SERVERS).unwrap();
    }
}

/// Says what the session keyring is called, whether the server's key is found, and whether that of
/// the argument is, which is added if not. A line on the input ends it.
pub fn probe() -> ! {
    let mut described = [0_u8; 256];
    // SAFETY: the buffer is there with its length.
    let keyring = answer(unsafe {
        let (buffer, length) = (described.as_mut_ptr(), described.len());
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_DESCRIBE,
            SESSION_KEYRING,
            buffer,
            length,
        )
    });
    let text = String::from_utf8_lossy(&described);
    let name = text.trim_end_matches('\0').rsplit(';').next();
    let said = |outcome: &Result<libc::c_long, std::io::Error>| match outcome {
        Ok(_) => "yes".to_owned(),
        Err(error) => error.raw_os_error().unwrap_or(0).to_string(),
    };
    println!(
        "keyring {}",
        keyring.map_or_else(|e| said(&Err(e)), |_| name.unwrap().to_owned())
    );
    println!("server's {}", said(&find(SERVERS)));
    if let Some(own) = std::env::args().nth(2) {
        let own = std::ffi::CString::new(own).unwrap();
        println!("own {}", said(&find(&own)));
        println!("added {}", said(&add(&own)));
    }
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0)
}

/// This program in the root, to be run there.
fn spec(bench: &Bench, insecure: bool, args: &[&str]) -> ProcessSpec {
    let mut spec = bench.command(&[&["/probe", PROBE_ARGUMENT], args].concat());
    spec.insecure = insecure;
    let program = ProcessMount::bind(std::env::current_exe().unwrap(), "/probe");
    spec.mounts.push(program);
    spec
}

fn lines(said: &str) -> Vec<String> {
    said.lines().map(str::to_owned).collect()
}

/// What this program finds when nothing stands between it and the server.
fn found_unprotected() -> Vec<String> {
    let mut command = std::process::Command::new(Path::new("/proc/self/exe"));
    let output = command
        .arg(PROBE_ARGUMENT)
        .stdin(std::process::Stdio::null());
    lines(&String::from_utf8(output.output().unwrap().stdout).unwrap())
}

fn a_step_has_a_session_keyring_of_its_own() {
    let bench = Bench::new();
    let unprotected = found_unprotected();
    for uid in [0, 1000] {
        let mut spec = spec(&bench, true, &["mine"]);
        spec.user.uid = uid;
        let found = lines(bench.run(spec).ok());
        if unprotected[1] != "server's yes" {
            assert_eq!(found[..2], unprotected, "nobody may have keys here");
            continue;
        }
        assert!(found[0].starts_with("keyring _ses."), "{found:?}");
        assert_ne!(found[0], unprotected[0]);
        let missing = format!("server's {}", libc::ENOKEY);
        // Nor is there what an earlier step has put into its own.
        let own = format!("own {}", libc::ENOKEY);
        assert_eq!(found[1..], [missing, own, "added yes".to_owned()]);
    }
    assert_eq!(found_unprotected(), unprotected);
}

fn processes_of_a_container_share_their_session_keyring() {
    let bench = Bench::new();
    if found_unprotected()[1] != "server's yes" {
        return;
    }
    block_on(async {
        let (input, writer) = std::io::pipe().unwrap();
        let (reader, output) = std::io::pipe().unwrap();
        let stdio = Stdio {
            stdin: Some(input.into()),
            stdout: output.into(),
            ..no_streams()
        };
        let first = spec(&bench, true, &["ours"]);
        let mut first = bench.executor.start("first", first, stdio).await.unwrap();
        let container = first.container().await.unwrap().unwrap();
        let found = tokio::task::spawn_blocking(|| {
            let said = std::io::BufReader::new(reader).lines().take(4);
            said.map(Result::unwrap).collect::<Vec<String>>()
        });
        let found = found.await.unwrap();
        let later = memory_file();
        let stdio = Stdio {
            stdout: later.try_clone().unwrap(),
            ..no_streams()
        };
        let second = spec(&bench, true, &["ours"]);
        let second = bench.executor.start_in(&container, second, stdio).await;
        assert_eq!(second.unwrap().wait().await.unwrap().code, 0);
        drop(writer);
        assert_eq!(first.wait().await.unwrap().code, 0);
        let second = lines(&content(later));
        assert_eq!(found[0], second[0]);
        assert_eq!(second[2], "own yes", "{second:?}");
    });
}

fn keys_cannot_be_asked_for_inside_the_sandbox() {
    let bench = Bench::new();
    let refused = libc::EPERM;
    let outcome = bench.run(spec(&bench, false, &["mine"]));
    let expected =
        format!("keyring {refused}\nserver's {refused}\nown {refused}\nadded {refused}\n");
    assert_eq!(outcome.ok(), expected);
}
