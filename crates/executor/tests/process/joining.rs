//! More processes in the container of one that runs.

use std::io::{Read, Write};

use crate::harness::{Bench, block_on, content, memory_file, no_streams};
use executor::{Container, ExecError, Process, Stdio, Terminal, WindowSize};

crate::harness::tests![
    a_second_process_shares_everything_with_the_first,
    it_ends_with_the_first_and_cannot_enter_afterwards,
    the_first_goes_on_when_it_ends,
    it_can_have_a_terminal_of_its_own,
];

/// A container whose first process sleeps until its input ends.
async fn first(bench: &Bench) -> (Process, Container, std::io::PipeWriter) {
    let (input, writer) = std::io::pipe().unwrap();
    let mut spec = bench.script("echo mark > /tmp-mark; cat > /dev/null; exit 4");
    spec.hostname = "cask".to_owned();
    let stdio = Stdio {
        stdin: Some(input.into()),
        ..no_streams()
    };
    let mut process = bench.executor.start("first", spec, stdio).await.unwrap();
    let container = process.container().await.unwrap().unwrap();
    (process, container, writer)
}

async fn say(bench: &Bench, container: &Container, script: &str) -> (i32, String) {
    let output = memory_file();
    let stdio = Stdio {
        stdin: None,
        stdout: output.try_clone().unwrap(),
        stderr: output.try_clone().unwrap(),
    };
    let spec = bench.script(script);
    let process = bench.executor.start_in(container, spec, stdio).await;
    let status = process.unwrap().wait().await.unwrap();
    (status.code, content(output))
}

fn a_second_process_shares_everything_with_the_first() {
    let bench = Bench::new();
    block_on(async {
        let (mut process, container, writer) = first(&bench).await;
        let script = "hostname; until test -s /tmp-mark; do :; done; cat /tmp-mark; \
                      tr '\\0' ' ' < /proc/1/cmdline; test $$ != 1 && echo; \
                      for n in mnt cgroup; do readlink /proc/1/ns/$n; readlink /proc/self/ns/$n; \
                      done | uniq | wc -l; \
                      cat /proc/1/cgroup > /one; cmp /one /proc/self/cgroup && rm /one; \
                      grep -c . /proc/self/status > /dev/null; grep CapEff /proc/1/status \
                      /proc/self/status | cut -f 2 | uniq | wc -l";
        let (code, said) = say(&bench, &container, script).await;
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(code, 0, "{said}");
        assert_eq!(&lines[..2], ["cask", "mark"], "{said}");
        assert!(lines[2].starts_with("/bin/sh -c echo mark"), "{said}");
        assert_eq!(&lines[3..], ["2", "1"], "{said}");
        drop(writer);
        assert_eq!(process.wait().await.unwrap().code, 4);
    });
}

fn it_ends_with_the_first_and_cannot_enter_afterwards() {
    let bench = Bench::new();
    block_on(async {
        let (mut process, container, _writer) = first(&bench).await;
        let spec = bench.script("sleep 1000");
        let second = bench.executor.start_in(&container, spec, no_streams());
        let mut second = second.await.unwrap();
        assert!(second.started().await.unwrap().is_some());
        process.kill();
        assert_eq!(process.wait().await.unwrap().signal, Some(9));
        assert_eq!(second.wait().await.unwrap().signal, Some(9));
        let spec = bench.script("true");
        let late = bench.executor.start_in(&container, spec, no_streams());
        let error = late.await.unwrap().wait().await.unwrap_err();
        assert!(
            matches!(&error, ExecError::Setup { what, .. } if what == "entering the container"),
            "{error:?}"
        );
    });
}

fn the_first_goes_on_when_it_ends() {
    let bench = Bench::new();
    block_on(async {
        let (mut process, container, writer) = first(&bench).await;
        assert_eq!(say(&bench, &container, "exit 3").await.0, 3);
        let spec = bench.command(&["/nothing"]);
        let failing = bench.executor.start_in(&container, spec, no_streams());
        let error = failing.await.unwrap().wait().await.unwrap_err();
        assert!(matches!(error, ExecError::NoSuchFile(_)), "{error:?}");
        let spec = bench.script("sleep 1000");
        let killed = bench.executor.start_in(&container, spec, no_streams());
        let mut killed = killed.await.unwrap();
        killed.started().await.unwrap();
        killed.kill();
        assert_eq!(killed.wait().await.unwrap().signal, Some(9));
        assert_eq!(say(&bench, &container, "echo still").await.1, "still\n");
        drop(writer);
        assert_eq!(process.wait().await.unwrap().code, 4);
    });
}

fn it_can_have_a_terminal_of_its_own() {
    let bench = Bench::new();
    block_on(async {
        let (mut process, container, writer) = first(&bench).await;
        let (input, mut typed) = std::io::pipe().unwrap();
        let (mut shown, output) = std::io::pipe().unwrap();
        let terminal = Terminal {
            stdin: Some(input.into()),
            output: output.into(),
            size: Some(WindowSize {
                rows: 11,
                columns: 22,
            }),
        };
        let spec = bench.script("tty; stty size; read x; stty size; echo got $x");
        let second = bench.executor.start_in(&container, spec, terminal).await;
        let mut second = second.unwrap();
        second.started().await.unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            let mut byte = [0; 1];
            while !text.contains("22\r\n") {
                shown.read_exact(&mut byte).unwrap();
                text.push(char::from(byte[0]));
            }
            (text, shown)
        });
        let (before, mut shown) = reader.join().unwrap();
        second.resize(WindowSize {
            rows: 5,
            columns: 6,
        });
        typed.write_all(b"this\n").unwrap();
        assert!(second.wait().await.unwrap().success());
        let mut after = String::new();
        shown.read_to_string(&mut after).unwrap();
        assert!(before.contains("/dev/pts/") && before.contains("11 22"));
        assert!(
            after.contains("5 6") && after.contains("got this"),
            "{after}"
        );
        drop(writer);
        process.wait().await.unwrap();
    });
}
