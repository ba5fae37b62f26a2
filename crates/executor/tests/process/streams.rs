//! Standard streams and terminals.

use std::io::{Read, Write};

use crate::harness::{Bench, block_on};
use executor::{Stdio, Terminal, WindowSize};
use tokio_util::sync::CancellationToken;

crate::harness::tests![
    a_hundred_megabytes_pass_through_both,
    input_is_given,
    a_reader_that_goes_away_ends_the_writer,
    a_terminal_is_one,
    a_terminal_passes_much_output,
];

const MEGABYTES: usize = 100;

fn a_hundred_megabytes_pass_through_both() {
    let bench = Bench::new();
    let (mut out_reader, out) = std::io::pipe().unwrap();
    let (mut err_reader, err) = std::io::pipe().unwrap();
    let stdio = Stdio {
        stdin: None,
        stdout: out.into(),
        stderr: err.into(),
    };
    let spec = bench.script(&format!(
        "dd if=/dev/zero bs=1M count={MEGABYTES} 2>/dev/null & dd if=/dev/zero bs=1M count={MEGABYTES} >&2 2>/dev/null; wait"
    ));
    let count = |reader: &mut dyn Read| std::io::copy(reader, &mut std::io::sink()).unwrap();
    let out = std::thread::spawn(move || count(&mut out_reader));
    let err = std::thread::spawn(move || count(&mut err_reader));
    let run = bench
        .executor
        .run("step", spec, stdio, CancellationToken::new());
    assert!(block_on(run).unwrap().success());
    assert_eq!(out.join().unwrap(), (MEGABYTES << 20) as u64);
    assert_eq!(err.join().unwrap(), (MEGABYTES << 20) as u64);
}

fn input_is_given() {
    let bench = Bench::new();
    let (input, mut writer) = std::io::pipe().unwrap();
    let output = crate::harness::memory_file();
    let stdio = Stdio {
        stdin: Some(input.into()),
        stdout: output.try_clone().unwrap(),
        stderr: output.try_clone().unwrap(),
    };
    writer.write_all(b"given\n").unwrap();
    drop(writer);
    let run = bench.executor.run(
        "step",
        bench.script("tr a-z A-Z"),
        stdio,
        CancellationToken::new(),
    );
    assert!(block_on(run).unwrap().success());
    assert_eq!(crate::harness::content(output), "GIVEN\n");
}

fn a_reader_that_goes_away_ends_the_writer() {
    let bench = Bench::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let stdio = Stdio {
        stdin: None,
        stdout: writer.try_clone().unwrap().into(),
        stderr: writer.into(),
    };
    let spec = bench.script("yes; exit 3");
    let run = bench
        .executor
        .run("step", spec, stdio, CancellationToken::new());
    // `yes` dies of the broken pipe: nobody ignores it.
    assert_eq!(block_on(run).unwrap().code, 3);
}

fn a_terminal_is_one() {
    let bench = Bench::new();
    let (input, mut typed) = std::io::pipe().unwrap();
    let (mut shown, output) = std::io::pipe().unwrap();
    let terminal = Terminal {
        stdin: Some(input.into()),
        output: output.into(),
        size: Some(WindowSize {
            rows: 30,
            columns: 90,
        }),
    };
    let spec = bench.script(
        "tty; stty size; test -c /dev/console && echo console; trap 'stty size; exit 0' WINCH; echo ready; read line; echo got $line; \
         while :; do sleep 1000 & wait; done",
    );
    let text = block_on(async {
        let mut process = bench.executor.start("step", spec, terminal).await.unwrap();
        typed.write_all(b"hello\n").unwrap();
        let read_until = |what: &'static str| {
            let mut shown = shown.try_clone().unwrap();
            tokio::task::spawn_blocking(move || {
                let mut text = String::new();
                let mut byte = [0];
                while !text.contains(what) && shown.read(&mut byte).unwrap() > 0 {
                    text.push(byte[0] as char);
                }
                text
            })
        };
        let mut text = read_until("got hello").await.unwrap();
        process.resize(WindowSize {
            rows: 40,
            columns: 100,
        });
        assert_eq!(process.wait().await.unwrap().code, 0);
        let mut rest = String::new();
        shown.read_to_string(&mut rest).unwrap();
        text.push_str(&rest);
        text
    });
    for part in [
        "/dev/pts/0\r\n",
        "30 90\r\n",
        "console\r\n",
        "got hello\r\n",
        "40 100\r\n",
    ] {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
}

fn a_terminal_passes_much_output() {
    let bench = Bench::new();
    let (mut shown, output) = std::io::pipe().unwrap();
    let terminal = Terminal {
        stdin: None,
        output: output.into(),
        size: None,
    };
    let spec = bench.script("dd if=/dev/zero bs=64k count=64 2>/dev/null; echo end");
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        shown.read_to_end(&mut all).unwrap();
        all
    });
    let run = bench
        .executor
        .run("step", spec, terminal, CancellationToken::new());
    assert!(block_on(run).unwrap().success());
    let all = reader.join().unwrap();
    assert_eq!(all.len(), (4 << 20) + 5);
    assert!(all.ends_with(b"end\r\n"));
}
