use bytes::Bytes;
use oci::Digest;
use progress::{Vertex, VertexLog, VertexWarning};

use super::*;

/// A moment that many milliseconds into the build.
fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_700_000_000_000 + ms).unwrap()
}

fn vertex(name: &str, started: Option<i64>, completed: Option<i64>) -> Vertex {
    Vertex {
        started: started.map(at),
        completed: completed.map(at),
        ..Vertex::new(Digest::of(name), name)
    }
}

fn log(name: &str, ms: i64, text: &str) -> SolveStatus {
    SolveStatus {
        logs: vec![VertexLog {
            vertex: Digest::of(name),
            stream: 1,
            timestamp: at(ms),
            data: Bytes::copy_from_slice(text.as_bytes()),
        }],
        ..SolveStatus::default()
    }
}

fn transfer(name: &str, id: &str, ms: (i64, i64), bytes: (i64, i64), done: bool) -> SolveStatus {
    let (started, now) = ms;
    SolveStatus {
        statuses: vec![VertexStatus {
            current: bytes.0,
            total: bytes.1,
            timestamp: at(now),
            completed: done.then(|| at(now)),
            ..VertexStatus::started(Digest::of(name), id, at(started))
        }],
        ..SolveStatus::default()
    }
}

struct Run {
    printer: PlainPrinter,
    out: Vec<u8>,
}

impl Run {
    fn new() -> Self {
        Run {
            printer: PlainPrinter::new(PlainOptions::default()),
            out: Vec::new(),
        }
    }

    fn feed(&mut self, ms: i64, status: SolveStatus) -> &mut Self {
        self.printer.update(&status, at(ms));
        self.printer.refresh(at(ms), &mut self.out);
        self
    }

    fn vertices(&mut self, ms: i64, vertices: Vec<Vertex>) -> &mut Self {
        self.feed(ms, SolveStatus::of_vertexes(vertices))
    }

    fn end(&mut self, ms: i64) -> String {
        self.printer.finish(at(ms), &mut self.out);
        String::from_utf8(std::mem::take(&mut self.out)).unwrap()
    }
}

#[test]
fn a_small_build_is_printed_as_stock_prints_it() {
    let load = "[internal] load build definition from Dockerfile";
    let mut run = Run::new();
    run.printer.options.description =
        "building with \"b\" instance using docker-container driver".into();
    run.vertices(
        0,
        vec![
            vertex(load, Some(0), None),
            vertex("[1/2] FROM busybox", None, None),
        ],
    );
    run.feed(
        1,
        transfer(load, "transferring dockerfile:", (0, 5), (60, 0), true),
    );
    run.vertices(30, vec![vertex(load, Some(0), Some(30))]);
    run.vertices(
        40,
        vec![Vertex {
            cached: true,
            ..vertex("[1/2] FROM busybox", Some(31), Some(31))
        }],
    );
    run.vertices(50, vec![vertex("[2/2] RUN echo hi", Some(50), None)]);
    run.feed(173, log("[2/2] RUN echo hi", 173, "hi\nthere\n"));
    run.vertices(300, vec![vertex("[2/2] RUN echo hi", Some(50), Some(290))]);
    assert_eq!(
        run.end(300),
        "\
#0 building with \"b\" instance using docker-container driver

#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 60B done
#1 DONE 0.0s

#2 [1/2] FROM busybox
#2 CACHED

#3 [2/2] RUN echo hi
#3 0.123 hi
#3 0.123 there
#3 DONE 0.2s
"
    );
}

#[test]
fn a_failed_step_shows_its_last_lines_again() {
    let name = "[2/2] RUN false";
    let mut run = Run::new();
    run.vertices(0, vec![vertex(name, Some(0), None)]);
    let text: String = (0..12).map(|n| format!("line {n}\n")).collect();
    run.feed(10, log(name, 10, &text));
    let error = "process \"/bin/sh -c false\" did not complete successfully: exit code: 1";
    run.vertices(
        20,
        vec![Vertex {
            error: error.into(),
            ..vertex(name, Some(0), Some(20))
        }],
    );
    let out = run.end(20);
    let (head, block) = out.split_once("------\n").unwrap();
    assert!(
        head.ends_with(&format!("#1 0.010 line 11\n#1 ERROR: {error}\n")),
        "{head}"
    );
    let expected: String = (2..12).map(|n| format!("0.010 line {n}\n")).collect();
    assert_eq!(block, format!(" > {name}:\n{expected}------\n"));
}

#[test]
fn a_cancelled_step_says_so_and_has_no_block() {
    let mut run = Run::new();
    let error = "process did not complete: context canceled";
    run.vertices(
        0,
        vec![Vertex {
            error: error.into(),
            ..vertex("a", Some(0), Some(20))
        }],
    );
    assert_eq!(run.end(20), "#1 a\n#1 CANCELED\n");
}

#[test]
fn a_step_that_completes_is_printed_between_the_lines_of_another() {
    let mut run = Run::new();
    run.vertices(0, vec![vertex("a", Some(0), None)]);
    run.feed(10, log("a", 10, "one"));
    run.vertices(20, vec![vertex("b", Some(15), Some(20))]);
    run.feed(1000, log("a", 1000, "+\n"));
    run.vertices(2000, vec![vertex("a", Some(0), Some(2000))]);
    assert_eq!(
        run.end(2000),
        "\
#1 a
#1 0.010 one
#1 ...

#2 b
#2 DONE 0.0s

#1 a
#1 0.010 one+
#1 DONE 2.0s
"
    );
}

#[test]
fn a_partial_line_is_continued_while_its_step_stays_current() {
    let mut run = Run::new();
    run.vertices(0, vec![vertex("a", Some(0), None)]);
    run.feed(10, log("a", 10, "."));
    run.feed(20, log("a", 20, "."));
    run.feed(30, log("a", 30, ".\nx"));
    run.vertices(40, vec![vertex("a", Some(0), Some(40))]);
    assert_eq!(
        run.end(40),
        "#1 a\n#1 0.010 ...\n#1 0.030 x\n#1 DONE 0.0s\n"
    );
}

#[test]
fn a_busy_step_gives_way_to_one_that_waits_too_long() {
    let mut run = Run::new();
    run.vertices(0, vec![vertex("a", Some(0), None)]);
    run.vertices(100, vec![vertex("b", Some(100), None)]);
    run.feed(200, log("b", 200, "hidden\n"));
    for ms in (1000..10_300).step_by(100) {
        run.feed(ms, log("a", ms, "a\n"));
    }
    let out = String::from_utf8(run.out.clone()).unwrap();
    let (before, after) = out.split_once("\n\n").unwrap();
    assert!(before.ends_with("#1 ..."), "{before}");
    assert!(after.starts_with("#2 b\n#2 0.100 hidden\n"), "{after}");
}

#[test]
fn a_status_is_repeated_only_when_it_moved() {
    let mut run = Run::new();
    run.vertices(0, vec![vertex("a", Some(0), None)]);
    for (ms, bytes, done) in [
        (0, 0, false),
        (100, 1, false),
        (200, 60, false),
        (5300, 61, false),
        (5400, 1000, true),
    ] {
        run.feed(ms, transfer("a", "sha256:1", (0, ms), (bytes, 1000), done));
    }
    run.vertices(5500, vec![vertex("a", Some(0), Some(5500))]);
    assert_eq!(
        run.end(5500),
        "\
#1 a
#1 sha256:1 0B / 1.00kB
#1 sha256:1 60B / 1.00kB 0.2s
#1 sha256:1 61B / 1.00kB 5.3s
#1 sha256:1 1.00kB / 1.00kB 5.4s done
#1 DONE 5.5s
"
    );
}

#[test]
fn warnings_are_printed_with_the_next_lines_of_their_step() {
    let mut run = Run::new();
    run.vertices(0, vec![vertex("a", Some(0), None)]);
    let warning = VertexWarning {
        vertex: Digest::of("a"),
        level: 1,
        short: "StageNameCasing".into(),
        detail: Vec::new(),
        url: String::new(),
        location: None,
    };
    run.feed(
        1,
        SolveStatus {
            warnings: vec![warning],
            ..SolveStatus::default()
        },
    );
    run.vertices(2, vec![vertex("a", Some(0), Some(2))]);
    assert_eq!(run.end(2), "#1 a\n#1 WARN: StageNameCasing\n#1 DONE 0.0s\n");
}

#[test]
fn booting_looks_as_in_the_documentation() {
    let boot = "[internal] booting buildkit";
    let mut run = Run::new();
    run.vertices(0, vec![vertex(boot, Some(0), None)]);
    let pull = "pulling image moby/buildkit:buildx-stable-1";
    let create = "creating container buildx_buildkit_container0";
    run.feed(0, transfer(boot, pull, (0, 0), (0, 0), false));
    run.feed(1900, transfer(boot, pull, (0, 1900), (0, 0), true));
    run.feed(1900, transfer(boot, create, (1900, 1900), (0, 0), false));
    run.feed(2400, transfer(boot, create, (1900, 2400), (0, 0), true));
    run.vertices(2400, vec![vertex(boot, Some(0), Some(2400))]);
    assert_eq!(
        run.end(2400),
        "\
#1 [internal] booting buildkit
#1 pulling image moby/buildkit:buildx-stable-1
#1 pulling image moby/buildkit:buildx-stable-1 1.9s done
#1 creating container buildx_buildkit_container0
#1 creating container buildx_buildkit_container0 0.5s done
#1 DONE 2.4s
"
    );
}

#[test]
fn a_step_that_was_cut_off_is_not_named_again_at_the_end() {
    let mut printer = PlainPrinter::new(PlainOptions::default());
    let mut out = Vec::new();
    let of = |vertex| SolveStatus::of_vertexes(vec![vertex]);
    printer.update(&of(vertex("run", Some(0), None)), at(0));
    printer.refresh(at(0), &mut out);
    printer.update(&of(vertex("boot", Some(10), Some(20))), at(20));
    printer.finish(at(20), &mut out);
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text, "#1 run\n#1 ...\n\n#2 boot\n#2 DONE 0.0s\n");
}

#[test]
fn a_step_that_was_cut_off_is_named_at_the_end_only_for_lines_not_yet_printed() {
    let mut run = Run::new();
    run.vertices(0, vec![vertex("a", Some(0), None)]);
    // News of another step and none of its own lines: it waits for `a`, and then all is over.
    run.vertices(1, vec![vertex("b", Some(1), None)]);
    run.feed(2, transfer("b", "pull", (1, 2), (10, 100), false));
    run.printer.update(
        &SolveStatus::of_vertexes(vec![
            vertex("a", Some(0), Some(3)),
            vertex("c", Some(3), None),
        ]),
        at(3),
    );
    let text = run.end(3);
    assert!(text.contains("#1 DONE 0.0s\n"), "{text}");
    assert!(text.contains(" pull 10B / 100B"), "{text}");
    assert!(!text.contains(" c\n"), "{text}");

    let mut run = Run::new();
    run.vertices(0, vec![vertex("a", Some(0), None)]);
    run.printer.update(
        &SolveStatus::of_vertexes(vec![vertex("c", Some(1), None)]),
        at(1),
    );
    run.printer.update(&log("c", 2, "last words\n"), at(2));
    let text = run.end(3);
    assert_eq!(text, "#1 a\n#1 ...\n\n#2 c\n#2 0.001 last words\n");
}
