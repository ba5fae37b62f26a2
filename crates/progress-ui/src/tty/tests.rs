use bytes::Bytes;
use oci::Digest;
use progress::{Vertex, VertexLog, VertexStatus};

use super::*;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_700_000_000_000 + ms).unwrap()
}

fn vertex(name: &str, started: i64, completed: Option<i64>) -> Vertex {
    Vertex {
        started: Some(at(started)),
        completed: completed.map(at),
        ..Vertex::new(Digest::of(name), name)
    }
}

fn log(name: &str, text: &str) -> SolveStatus {
    SolveStatus {
        logs: vec![VertexLog {
            vertex: Digest::of(name),
            stream: 1,
            timestamp: at(0),
            data: Bytes::copy_from_slice(text.as_bytes()),
        }],
        ..SolveStatus::default()
    }
}

struct Terminal {
    printer: TtyPrinter,
    screen: Screen,
    size: Size,
}

impl Terminal {
    fn new(width: usize, height: usize) -> Self {
        let options = TtyOptions {
            description: "docker-container:b".into(),
            colors: Colors::default(),
            ..TtyOptions::default()
        };
        Terminal {
            printer: TtyPrinter::new(options),
            screen: Screen::new(height, width),
            size: Size { width, height },
        }
    }

    fn vertices(&mut self, vertices: Vec<Vertex>) {
        self.feed(&SolveStatus::of_vertexes(vertices));
    }

    fn feed(&mut self, status: &SolveStatus) {
        self.printer.update(status, at(0), self.size);
    }

    fn frame(&mut self, ms: i64) -> Vec<String> {
        let mut out = Vec::new();
        self.printer.frame(at(ms), self.size, &mut out);
        self.show(&out)
    }

    fn finish(&mut self, ms: i64) -> Vec<String> {
        let mut out = Vec::new();
        self.printer.finish(at(ms), self.size, &mut out);
        self.show(&out)
    }

    fn show(&mut self, out: &[u8]) -> Vec<String> {
        self.screen.write(out);
        let rows = self.screen.text_rows();
        assert!(rows.iter().all(|row| row.width() <= self.size.width));
        rows.iter().map(|row| row.trim_end().to_owned()).collect()
    }
}

#[test]
fn frames_replace_each_other_and_the_last_one_stays() {
    let mut terminal = Terminal::new(60, 20);
    terminal.vertices(vec![
        vertex("[1/2] FROM a", 0, Some(100)),
        vertex("[2/2] RUN b", 100, None),
    ]);
    let expected = [
        "[+] Building 1.2s (1/2)                  docker-container:b",
        " => [1/2] FROM a                                       0.1s",
        " => [2/2] RUN b                                        1.1s",
    ];
    assert_eq!(terminal.frame(1200), expected);
    assert_eq!(terminal.frame(1200), expected);
    terminal.vertices(vec![Vertex {
        cached: true,
        ..vertex("[2/2] RUN b", 100, Some(110))
    }]);
    assert_eq!(
        terminal.finish(1300),
        [
            "[+] Building 1.3s (2/2) FINISHED         docker-container:b",
            " => [1/2] FROM a                                       0.1s",
            " => CACHED [2/2] RUN b                                 0.0s",
        ]
    );
}

#[test]
fn lines_fit_80_and_200_columns_and_narrow_terminals() {
    for (width, name_cells) in [(80, 68), (200, 188), (30, 18), (25, 13)] {
        let mut terminal = Terminal::new(width, 10);
        terminal.vertices(vec![vertex(&"日".repeat(200), 0, None)]);
        let rows = terminal.frame(12_300);
        assert_eq!(rows.len(), 2, "{width}");
        assert_eq!(rows[1].width(), width - 1, "{width}");
        assert!(rows[1].ends_with(" 12.3s"), "{}", rows[1]);
        assert_eq!(rows[1].matches('日').count(), name_cells / 2, "{width}");
    }
    let mut terminal = Terminal::new(20, 10);
    terminal.vertices(vec![vertex("a", 0, None)]);
    assert_eq!(terminal.frame(0).len(), 1, "only the first line fits");
}

#[test]
fn statuses_show_amounts_where_there_is_room() {
    for (width, amount) in [(60, true), (30, false)] {
        let mut terminal = Terminal::new(width, 10);
        terminal.vertices(vec![vertex("a", 0, None)]);
        let status = VertexStatus {
            current: 1_000_000,
            total: 3_500_000,
            ..VertexStatus::started(Digest::of("a"), "sha256:0123", at(0))
        };
        terminal.feed(&SolveStatus {
            statuses: vec![status],
            ..SolveStatus::default()
        });
        let row = terminal.frame(500).pop().unwrap();
        assert_eq!(row.contains("1.00MB / 3.50MB"), amount, "{row}");
        assert!(row.starts_with(" => => sha256:0123"), "{row}");
    }
}

#[test]
fn a_running_step_shows_its_last_lines_and_a_failed_one_all_of_them() {
    let mut terminal = Terminal::new(60, 30);
    terminal.vertices(vec![vertex("[2/2] RUN b", 0, None)]);
    let text: String = (0..9).map(|n| format!("line {n}\n")).collect();
    terminal.feed(&log("[2/2] RUN b", &text));
    let rows = terminal.frame(100);
    assert_eq!(rows.len(), 8);
    assert_eq!(rows[2], " => => # line 3");
    assert_eq!(rows[7], " => => # line 8");
    terminal.vertices(vec![Vertex {
        error: "exit code: 1".into(),
        ..vertex("[2/2] RUN b", 0, Some(90))
    }]);
    let rows = terminal.finish(100);
    assert!(rows[1].starts_with(" => ERROR [2/2] RUN b "), "{rows:?}");
    assert_eq!(rows[2..4], ["------", " > [2/2] RUN b:"]);
    assert_eq!(rows[4], "0.000 line 0");
    assert_eq!(rows[13], "------");
}

#[test]
fn running_steps_stay_in_sight_on_a_low_terminal() {
    let mut terminal = Terminal::new(60, 6);
    let mut vertices = vec![vertex("running", 0, None)];
    vertices.extend((0..10).map(|n| vertex(&format!("step {n}"), 1, Some(2))));
    terminal.vertices(vertices);
    let rows = terminal.frame(100);
    let names: Vec<&str> = rows[1..]
        .iter()
        .map(|row| row[4..].split("  ").next().unwrap())
        .collect();
    assert_eq!(names, ["running", "step 7", "step 8", "step 9"]);
}

#[test]
fn a_narrower_terminal_is_cleared_row_by_row() {
    let mut terminal = Terminal::new(100, 20);
    terminal.vertices(vec![vertex("a", 0, None), vertex("b", 0, None)]);
    terminal.frame(100);
    terminal.size.width = 40;
    let mut out = Vec::new();
    terminal.printer.frame(at(200), terminal.size, &mut out);
    let text = String::from_utf8(out).unwrap();
    let ups = text.matches("\x1b[1A").count();
    assert_eq!(ups, 9, "three lines of 99 cells are nine rows of 40");
    assert!(text.contains("\x1b[0G\x1b[J"));
    let mut out = Vec::new();
    terminal.size.width = 90;
    terminal.printer.frame(at(300), terminal.size, &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap().matches("\x1b[1A").count(),
        3
    );
}

#[test]
fn completed_steps_have_their_colors() {
    let mut terminal = Terminal::new(60, 20);
    terminal.printer.options.colors = Colors::standard();
    let failed = |name: &str, error: &str| Vertex {
        error: error.into(),
        ..vertex(name, 0, Some(1))
    };
    terminal.vertices(vec![
        vertex("done", 0, Some(1)),
        vertex("runs", 0, None),
        failed("bad", "no"),
        failed("stopped", "x: context canceled"),
    ]);
    let mut out = Vec::new();
    terminal.printer.frame(at(10), terminal.size, &mut out);
    let text = String::from_utf8(out).unwrap();
    for piece in [
        "\x1b[34m => done ",
        "\x1b[0m => runs ",
        "\x1b[31m => ERROR bad ",
        "\x1b[33m => CANCELED stopped ",
    ] {
        assert!(text.contains(piece), "{piece:?} in {text:?}");
    }
}
