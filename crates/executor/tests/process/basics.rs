//! Programs, environment, users, limits and exit codes.

use crate::harness::Bench;
use executor::{ExecError, ExitStatus, UserIds, resolve_user};

crate::harness::tests![
    a_command_runs_as_pid_1,
    exit_codes_and_signals_are_told,
    missing_programs_are_worded_as_stock_does,
    a_foreign_program_is_an_exec_format_error,
    the_environment_is_what_was_given_and_home,
    a_missing_working_directory_is_made_for_the_user,
    a_working_directory_is_entered_as_it_is_written,
    a_working_directory_that_leads_out_is_refused,
    users_and_groups_are_taken_on,
    a_user_can_open_its_own_streams,
    limits_and_oom_score_are_set,
    signals_are_at_their_defaults,
    set_user_id_programs_work,
];

fn a_command_runs_as_pid_1() {
    let bench = Bench::new();
    let outcome = bench.run(bench.script("echo $$; echo oops >&2; ps -o pid,args; :"));
    let mut lines = outcome.ok().lines();
    assert_eq!(lines.next(), Some("1"));
    assert_eq!(outcome.stdout.lines().count(), 4, "{}", outcome.stdout);
    assert_eq!(outcome.stderr, "oops\n");
}

fn exit_codes_and_signals_are_told() {
    let bench = Bench::new();
    assert_eq!(bench.run(bench.script("exit 7")).code(), 7);
    assert_eq!(bench.run(bench.script("no-such-thing")).code(), 127);
    // pid 1 does not die of its own signals: a child of it does, and the shell tells.
    assert_eq!(
        bench
            .run(bench.script("sh -c 'kill -9 $$'; exit $?"))
            .code(),
        137
    );
    let status = bench.run(bench.command(&["true"])).result.unwrap();
    assert_eq!(
        ExitStatus {
            code: 0,
            signal: None,
            ..status.clone()
        },
        status
    );
}

fn missing_programs_are_worded_as_stock_does() {
    let bench = Bench::new();
    let error = |args: &[&str]| bench.run(bench.command(args)).error();
    assert_eq!(
        error(&["foo"]),
        "exec: \"foo\": executable file not found in $PATH"
    );
    assert_eq!(
        error(&["/foo"]),
        "exec: \"/foo\": stat /foo: no such file or directory"
    );
    assert_eq!(error(&["/bin"]), "exec: \"/bin\": is a directory");
    std::fs::write(bench.root().join("data"), "x").unwrap();
    assert_eq!(error(&["/data"]), "exec: \"/data\": permission denied");
    assert_eq!(error(&[]), "no command specified");
    assert!(matches!(
        bench.run(bench.command(&["a\0b"])).result,
        Err(ExecError::InvalidSpec(_) | ExecError::NotFoundInPath(_))
    ));
}

fn a_foreign_program_is_an_exec_format_error() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    let mut program = std::fs::read("/bin/busybox").unwrap();
    // A number that no architecture has.
    program[18..20].copy_from_slice(&[0xdc, 0xfe]);
    let path = bench.root().join("foreign");
    std::fs::write(&path, program).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let outcome = bench.run(bench.command(&["/foreign"]));
    assert_eq!(outcome.error(), "exec /foreign: exec format error");
    let error = outcome.result.unwrap_err();
    assert_eq!(error.exit_code(), Some(255));
}

fn the_environment_is_what_was_given_and_home() {
    let bench = Bench::new();
    let mut spec = bench.command(&["/bin/env"]);
    spec.env.extend(["A=1", "A=2", "E="].map(str::to_owned));
    assert_eq!(
        bench.run(spec.clone()).ok(),
        "PATH=/usr/bin:/bin\nA=2\nE=\nHOME=/\n"
    );
    std::fs::create_dir_all(bench.root().join("etc")).unwrap();
    let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:7:8::/home/ann:/bin/sh\n";
    std::fs::write(bench.root().join("etc/passwd"), passwd).unwrap();
    assert!(bench.run(spec.clone()).ok().ends_with("HOME=/root\n"));
    spec.user.uid = 7;
    assert!(bench.run(spec.clone()).ok().ends_with("HOME=/home/ann\n"));
    spec.env.push("HOME=/mine".to_owned());
    assert!(bench.run(spec).ok().ends_with("HOME=/mine\n"));
}

fn a_missing_working_directory_is_made_for_the_user() {
    let bench = Bench::new();
    let mut spec = bench.script("pwd; stat -c %u:%g:%a . ..; touch x");
    spec.cwd = "/a/b".to_owned();
    spec.user = UserIds {
        uid: 1000,
        gid: 1001,
        additional_gids: Vec::new(),
    };
    assert_eq!(bench.run(spec).ok(), "/a/b\n1000:1001:755\n1000:1001:755\n");
    assert!(bench.root().join("a/b/x").exists());
}

fn a_working_directory_is_entered_as_it_is_written() {
    let bench = Bench::new();
    let mut spec = bench.script("pwd; cd /x/y; stat -c %n:%u:%a *");
    spec.cwd = "/x//y/./z/../w/".to_owned();
    assert_eq!(bench.run(spec).ok(), "/x/y/w\nw:0:755\nz:0:755\n");
}

fn a_working_directory_that_leads_out_is_refused() {
    let bench = Bench::new();
    for number in 0..12 {
        let mut spec = bench.script("pwd; ls /work /home 2>&1; ls .");
        spec.cwd = format!("/proc/self/fd/{number}");
        // Either it is refused, or it is a place inside.
        let outcome = bench.run(spec);
        assert!(!outcome.stdout.contains("boot"), "{number}: {outcome:?}");
    }
    let mut spec = bench.script("true");
    std::os::unix::fs::symlink("/../../..", bench.root().join("up")).unwrap();
    spec.cwd = "/up/there".to_owned();
    bench.run(spec).ok();
    assert!(bench.root().join("there").is_dir());
}

fn users_and_groups_are_taken_on() {
    let bench = Bench::new();
    std::fs::create_dir_all(bench.root().join("etc")).unwrap();
    std::fs::write(bench.root().join("etc/passwd"), "ann:x:7:8::/:/bin/sh\n").unwrap();
    std::fs::write(bench.root().join("etc/group"), "extra:x:99:ann\n").unwrap();
    let mut spec = bench.script("id -u; id -g; id -G; cat /proc/self/status | grep ^Cap");
    spec.user = resolve_user(&bench.root(), "ann").unwrap();
    let outcome = bench.run(spec);
    let lines: Vec<&str> = outcome.ok().lines().collect();
    assert_eq!(&lines[..3], ["7", "8", "8 99"]);
    assert!(lines.contains(&"CapEff:\t0000000000000000"), "{lines:?}");
    assert!(lines.contains(&"CapAmb:\t0000000000000000"), "{lines:?}");
}

fn a_user_can_open_its_own_streams() {
    let bench = Bench::new();
    let mut spec = bench.script("echo out > /dev/stdout; echo err > /dev/stderr");
    spec.user.uid = 1000;
    let (reader, writer) = std::io::pipe().unwrap();
    let stdio = executor::Stdio {
        stdin: None,
        stdout: writer.try_clone().unwrap().into(),
        stderr: writer.into(),
    };
    let cancel = tokio_util::sync::CancellationToken::new();
    let status = crate::harness::block_on(bench.executor.run("step", spec, stdio, cancel)).unwrap();
    assert!(status.success());
    assert_eq!(std::io::read_to_string(reader).unwrap(), "out\nerr\n");
}

fn limits_and_oom_score_are_set() {
    let bench = Bench::new();
    let mut spec = bench.script("ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj");
    spec.ulimits = vec![llb::Ulimit {
        name: "nofile".to_owned(),
        soft: 100,
        hard: 200,
    }];
    spec.oom_score_adj = Some(500);
    assert_eq!(bench.run(spec).ok(), "100\n200\n500\n");
}

fn signals_are_at_their_defaults() {
    let bench = Bench::new();
    let outcome = bench.run(bench.command(&["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]));
    assert_eq!(
        outcome.ok(),
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    );
}

fn set_user_id_programs_work() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    let path = bench.root().join("bin/suid");
    std::fs::copy("/bin/busybox", &path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4755)).unwrap();
    std::fs::rename(&path, bench.root().join("bin/busybox")).unwrap();
    let mut spec = bench.script("grep -E '^(Uid|NoNewPrivs|Seccomp):' /proc/self/status");
    spec.user.uid = 1000;
    let outcome = bench.run(spec);
    assert!(
        outcome.ok().contains("NoNewPrivs:\t0\n"),
        "{}",
        outcome.stdout
    );
    assert!(
        outcome.stdout.contains("Seccomp:\t2\n"),
        "{}",
        outcome.stdout
    );
}
