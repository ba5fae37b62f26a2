//! Secrets and ssh: what steps see of them, and that nothing else does.

use std::path::Path;
use std::process::{Child, Command};

use llb::{ClientFile, MountKind, SecretEnv};

use super::{Case, Matrix};
use crate::workshop::text;

fn secret(id: &str, uid: u32, gid: u32, mode: u32, optional: bool) -> MountKind {
    MountKind::Secret(file(id, uid, gid, mode, optional))
}

fn ssh(id: &str, uid: u32, gid: u32, mode: u32, optional: bool) -> MountKind {
    MountKind::Ssh(file(id, uid, gid, mode, optional))
}

fn file(id: &str, uid: u32, gid: u32, mode: u32, optional: bool) -> ClientFile {
    ClientFile {
        id: id.into(),
        uid,
        gid,
        mode,
        optional,
    }
}

#[test]
fn matrix_secrets() {
    let matrix = Matrix::start(&[]);
    let file = matrix.shop.lab.directory().join("secret.bin");
    std::fs::write(&file, b"line\n\0\xff end").unwrap();
    let empty = matrix.shop.lab.directory().join("empty");
    std::fs::write(&empty, b"").unwrap();
    let flags = [
        format!("--secret=id=file,src={}", text(&file)),
        format!("--secret=id=empty,src={}", text(&empty)),
        "--secret=id=variable,env=MATRIX_SECRET".to_owned(),
        "--secret=id=MATRIX_SECRET".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let look = "stat -c '%n %a %u:%g %s' /s >/out/stat; cp /s /out/copy; grep ' /s ' /proc/mounts | cut -d' ' -f3 >/out/kind; (echo x >/s) 2>/out/said || true";
    let mut cases = Vec::new();
    for (id, uid, gid, mode, optional) in [
        ("file", 0, 0, 0o400, false),
        ("file", 1000, 10, 0o444, false),
        ("file", 5, 6, 0o777, true),
        ("variable", 0, 0, 0o400, false),
        ("MATRIX_SECRET", 0, 0, 0o400, false),
        ("empty", 0, 0, 0o400, false),
        ("nonesuch", 0, 0, 0o400, false),
        ("", 0, 0, 0o400, false),
        ("file", 0, 0, 0o4755, false),
        ("file", 0, 0, 0, false),
    ] {
        let name = format!("secret {id:?} {uid}:{gid} {mode:o} optional={optional}");
        cases.push(
            Case::of(&name, &matrix, |llb| {
                let step = llb
                    .step(look)
                    .with("/s", secret(id, uid, gid, mode, optional));
                llb.run(step)
            })
            .flags(&flags),
        );
    }
    cases.push(
        Case::of("optional and missing", &matrix, |llb| {
            let step = llb
                .step("ls / >/out/seen")
                .with("/s", secret("nonesuch", 0, 0, 0o400, true));
            llb.run(step)
        })
        .flags(&flags),
    );
    cases.push(Case::of("without any secret", &matrix, |llb| {
        let step = llb
            .step(look)
            .with("/s", secret("file", 0, 0, 0o400, false));
        llb.run(step)
    }));
    cases.push(Case::of("without any secret, optional", &matrix, |llb| {
        let step = llb
            .step("ls / >/out/seen")
            .with("/s", secret("file", 0, 0, 0o400, true));
        llb.run(step)
    }));
    cases.push(Case::of("deep place", &matrix, |llb| {
        let step = llb.step("cat /run/secrets/a/b >/out/copy; stat -c '%a %u:%g' /run /run/secrets /run/secrets/a >/out/dirs").with("/run/secrets/a/b", secret("file", 0, 0, 0o400, false));
        llb.run(step)
    }).flags(&flags));
    for (id, optional) in [
        ("file", false),
        ("variable", false),
        ("nonesuch", false),
        ("nonesuch", true),
        ("empty", false),
    ] {
        cases.push(
            Case::of(
                &format!("variable {id} optional={optional}"),
                &matrix,
                |llb| {
                    let mut step = llb.step("env | sort >/out/env");
                    step.exec.secret_env = vec![SecretEnv {
                        id: id.into(),
                        name: "GIVEN".into(),
                        optional,
                    }];
                    llb.run(step)
                },
            )
            .flags(if id == "file" { &flags[1..2] } else { &flags }),
        );
    }
    matrix.compare(&cases);
}

/// `ssh-agent` with one key; ended when dropped.
pub struct Agent {
    process: Child,
    pub socket: String,
    /// The file with its key.
    pub key: String,
}

impl Agent {
    pub fn start(directory: &Path) -> Agent {
        let socket = text(&directory.join("agent.sock"));
        let process = Command::new("ssh-agent")
            .args(["-D", "-a", &socket])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let key = text(&directory.join("key"));
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "matrix", "-f", &key])
            .status()
            .unwrap();
        assert!(made.success());
        let mut added = false;
        for _ in 0..500 {
            let add = Command::new("ssh-add")
                .args(["-q", &key])
                .env("SSH_AUTH_SOCK", &socket)
                .output()
                .unwrap();
            added = add.status.success();
            if added {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(added, "ssh-add");
        Agent {
            process,
            socket,
            key,
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A folder with a program of this machine and the libraries it needs, at their places.
pub fn with_libraries(program: &str, directory: &Path) {
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for file in libraries.chain([program]) {
        let place = directory.join(file.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::copy(file, place).unwrap();
    }
}

#[test]
fn matrix_ssh() {
    let matrix = Matrix::start(&[]);
    let agent = Agent::start(&matrix.shop.lab.subdirectory("agent"));
    let tools = matrix.shop.lab.subdirectory("tools");
    with_libraries("/usr/bin/ssh-add", &tools);
    let local = format!("--local=tools={}", text(&tools));
    let given = format!("--ssh=default={}", agent.socket);
    let key = format!("--ssh=default={}", agent.key);
    let named = format!("--ssh=other={}", agent.socket);
    let look = "stat -c '%F %a %u:%g' /agent.sock >/out/stat; SSH_AUTH_SOCK=/agent.sock /usr/bin/ssh-add -l | cut -d' ' -f1,3- >/out/keys; \
                SSH_AUTH_SOCK=/agent.sock /usr/bin/ssh-add -D 2>/out/said || true";
    let case = |name: &str, script: &str, kind: MountKind, flags: &[&str]| {
        Case::of(name, &matrix, |llb| {
            let (base, tools) = (llb.base(), llb.source("local://tools", &[]));
            let root = llb.copy(
                tools,
                Some(base),
                llb::CopyAction {
                    src: "/".into(),
                    dest: "/".into(),
                    dir_copy_contents: true,
                    ..llb::CopyAction::default()
                },
            );
            let mut step = llb.step(script).with("/agent.sock", kind);
            step.inputs[0] = root;
            llb.run(step)
        })
        .flags(&[local.as_str()])
        .flags(flags)
    };
    let cases = vec![
        case(
            "the default agent",
            look,
            ssh("", 0, 0, 0o600, false),
            &[&given],
        ),
        case(
            "by its name",
            look,
            ssh("default", 7, 8, 0o660, false),
            &[&given],
        ),
        case(
            "a key and no agent",
            look,
            ssh("default", 0, 0, 0o600, false),
            &[&key],
        ),
        case(
            "another agent",
            look,
            ssh("other", 0, 0, 0o600, false),
            &[&named],
        ),
        case(
            "missing",
            look,
            ssh("default", 0, 0, 0o600, false),
            &[&named],
        ),
        case("none", look, ssh("default", 0, 0, 0o600, false), &[]),
        case(
            "optional",
            "ls / >/out/seen",
            ssh("default", 0, 0, 0o600, true),
            &[],
        ),
        case(
            "optional, others given",
            "ls / >/out/seen",
            ssh("default", 0, 0, 0o600, true),
            &[&named],
        ),
    ];
    matrix.compare(&cases);
}

/// Whether a file below a directory holds these bytes.
fn found_below(directory: &Path, needle: &[u8], found: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found_below(&path, needle, found);
        } else if kind.is_file() {
            let bytes = std::fs::read(&path).unwrap_or_default();
            if bytes.windows(needle.len()).any(|window| window == needle) {
                found.push(path.display().to_string());
            }
        }
    }
}

#[test]
fn matrix_secrets_are_nowhere_on_disk_after_builds_that_end_well_fail_or_are_killed() {
    let mut matrix = Matrix::alone(testkit::Release::Debian, &[]);
    let needle = "oak-and-iron-5b1f0c";
    let file = matrix.shop.lab.subdirectory("vault").join("secret");
    std::fs::write(&file, needle).unwrap();
    let given = format!("--secret=id=vault,src={}", text(&file));
    let case = |name: &str, script: &str| {
        Case::of(name, &matrix, |llb| {
            let mut step = llb
                .step(&format!(
                    "test $(wc -c </s) = 19; test ${{#GIVEN}} = 19; {script}; : {name}"
                ))
                .with("/s", secret("vault", 0, 0, 0o400, false))
                .with(
                    "/meet",
                    MountKind::Cache {
                        id: "meet".into(),
                        sharing: llb::CacheSharing::Shared,
                    },
                );
            step.exec.secret_env = vec![SecretEnv {
                id: "vault".into(),
                name: "GIVEN".into(),
                optional: false,
            }];
            llb.run(step)
        })
        .flags(&[&given])
    };
    let well = case("well", "echo fine >/out/x");
    let fails = case("fails", "exit 3");
    let aborts = case(
        "aborts",
        "ulimit -c unlimited 2>/dev/null; kill -ABRT $$; sleep 1",
    );
    let killed = case("killed", "touch /meet/running; sleep 1000");
    let seen = Case::of("seen", &matrix, |llb| {
        let step = llb
            .step("n=0; until [ -e /meet/running ]; do n=$((n+1)); [ $n -lt 6000 ] || exit 9; sleep 0.02; done")
            .with("/meet", MountKind::Cache { id: "meet".into(), sharing: llb::CacheSharing::Shared });
        llb.run(step)
    });
    matrix.build(&well).unwrap();
    assert!(matrix.build(&fails).unwrap_err().contains("exit code: 3"));
    let _ = matrix.build(&aborts);
    let mut running = matrix.ours.start(&killed, "");
    matrix.build(&seen).unwrap();
    let mut found = Vec::new();
    found_below(&matrix.server.root(), needle.as_bytes(), &mut found);
    assert!(found.is_empty(), "while a step has it: {found:?}");
    matrix.server.kill_and_restart(&[]);
    let _ = running.kill();
    let _ = running.wait();
    matrix.build(&well).unwrap();
    found_below(&matrix.server.root(), needle.as_bytes(), &mut found);
    assert!(found.is_empty(), "afterwards: {found:?}");
    assert!(!matrix.server.log().contains(needle));
    assert!(!matrix.server.abort(), "the server's memory was dumped");
}
