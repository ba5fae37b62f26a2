//! The edge: a thread that owns a display, reads the clock and writes.
//!
//! Statuses come over a channel from any number of [`Progress`] handles; the thread draws at most
//! every 100 ms, and every 150 ms when nothing comes (`TTY_DISPLAY_RATE` changes both).

use std::fs::File;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use progress::{SolveStatus, VertexWarning};

use crate::Mode;
use crate::colors::Colors;
use crate::plain::{PlainOptions, PlainPrinter};
use crate::rawjson::status_line;
use crate::tty::{Size, TtyOptions, TtyPrinter};
use crate::warnings::distinct_warnings;

/// Where a display writes.
pub struct Output {
    writer: Box<dyn Write + Send>,
    terminal: Option<File>,
}

/// What a printer is made from.
#[derive(Clone, Debug, Default)]
pub struct PrinterOptions {
    /// How progress is shown.
    pub mode: Mode,
    /// The line that describes the build in plain output.
    pub plain_description: String,
    /// The text at the right of the first line on a terminal.
    pub tty_description: String,
    /// The first word on a terminal; `Building` if empty.
    pub phase: String,
}

/// Where statuses go to be shown; clones go to the same display.
#[derive(Clone, Debug)]
pub struct Progress(Sender<Message>);

/// What the thread is told.
#[derive(Debug)]
enum Message {
    Status(SolveStatus),
    Close,
}

/// The other end of [`Progress::channel`].
#[derive(Debug)]
pub struct Statuses(Receiver<Message>);

impl Iterator for Statuses {
    type Item = SolveStatus;

    /// Waits for the next status; `None` when every sender is gone.
    fn next(&mut self) -> Option<SolveStatus> {
        match self.0.recv() {
            Ok(Message::Status(status)) => Some(status),
            Ok(Message::Close) | Err(_) => None,
        }
    }
}

/// A running display.
#[derive(Debug)]
pub struct Printer {
    progress: Progress,
    thread: JoinHandle<Vec<VertexWarning>>,
    mode: Mode,
}

impl Output {
    /// Standard error, drawn on if it is a terminal.
    pub fn stderr() -> Self {
        Self::standard(rustix::stdio::stderr(), std::io::stderr())
    }

    /// Standard output, likewise.
    pub fn stdout() -> Self {
        Self::standard(rustix::stdio::stdout(), std::io::stdout())
    }

    fn standard(stream: BorrowedFd<'_>, writer: impl Write + Send + 'static) -> Self {
        let terminal = rustix::io::dup(stream)
            .ok()
            .map(File::from)
            .filter(|terminal| rustix::termios::isatty(terminal));
        Output {
            writer: Box::new(writer),
            terminal,
        }
    }

    /// Something that is no terminal.
    pub fn writer(writer: impl Write + Send + 'static) -> Self {
        Output {
            writer: Box::new(writer),
            terminal: None,
        }
    }

    /// Whether a live picture can be drawn on it.
    pub fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    fn size(&self) -> Size {
        let told = self
            .terminal
            .as_ref()
            .and_then(|terminal| rustix::termios::tcgetwinsize(terminal).ok());
        match told {
            Some(told) if told.ws_col > 0 && told.ws_row > 0 => Size {
                width: usize::from(told.ws_col),
                height: usize::from(told.ws_row),
            },
            _ => Size::default(),
        }
    }
}

impl Progress {
    /// Shows a status. After the display is closed it goes nowhere.
    pub fn send(&self, status: SolveStatus) {
        let _ = self.0.send(Message::Status(status));
    }

    /// Says that nothing more comes: the receiver of a channel sees the end, also when clones of this
    /// handle remain.
    pub fn close(&self) {
        let _ = self.0.send(Message::Close);
    }

    /// A handle whose statuses go to the receiver instead of a display.
    pub fn channel() -> (Self, Statuses) {
        let (sender, receiver) = channel();
        (Progress(sender), Statuses(receiver))
    }
}

impl Printer {
    /// Starts a display. `BUILDKIT_PROGRESS` decides when the mode is `Auto`; asking for `Tty`
    /// without a terminal is an error.
    pub fn start(options: PrinterOptions, output: Output) -> diag::Result<Self> {
        let mode = resolve_mode(options.mode, env("BUILDKIT_PROGRESS"), output.is_terminal())?;
        let mut display = Display::new(mode, options);
        let (sender, receiver) = channel();
        let intervals = Intervals::from_env(env("TTY_DISPLAY_RATE"));
        let thread = std::thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || show(&mut display, output, &receiver, intervals))?;
        Ok(Printer {
            progress: Progress(sender),
            thread,
            mode,
        })
    }

    /// A handle to send statuses with.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// How progress is shown: never `Auto`.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Closes the display after everything sent before was shown; returns what the build warned
    /// about, each once. Blocks as long as the output does.
    pub fn finish(self) -> Vec<VertexWarning> {
        let _ = self.progress.0.send(Message::Close);
        self.thread.join().unwrap_or_default()
    }
}

#[derive(Clone, Copy)]
struct Intervals {
    draw: Duration,
    idle: Duration,
}

impl Intervals {
    fn from_env(rate: Option<String>) -> Self {
        let rate = rate.and_then(|rate| rate.parse().ok());
        let ms = |usual: u64| Duration::from_millis(rate.unwrap_or(usual).max(1));
        Intervals {
            draw: ms(100),
            idle: ms(150),
        }
    }
}

enum Display {
    Plain(PlainPrinter),
    Tty(TtyPrinter),
    RawJson,
    Quiet,
}

impl Display {
    fn new(mode: Mode, options: PrinterOptions) -> Self {
        match mode {
            Mode::Tty => Display::Tty(TtyPrinter::new(tty_options(options))),
            Mode::RawJson => Display::RawJson,
            Mode::Quiet => Display::Quiet,
            Mode::Plain | Mode::Auto => Display::Plain(PlainPrinter::new(PlainOptions {
                description: options.plain_description,
                truncate_names: env("PROGRESS_NO_TRUNC").as_deref() == Some("0"),
            })),
        }
    }

    fn update(&mut self, status: &SolveStatus, size: Size, out: &mut Vec<u8>) {
        match self {
            Display::Plain(plain) => plain.update(status, Timestamp::now()),
            Display::Tty(tty) => tty.update(status, Timestamp::now(), size),
            Display::RawJson => out.extend_from_slice(status_line(status).as_bytes()),
            Display::Quiet => {}
        }
    }

    fn draw(&mut self, size: Size, out: &mut Vec<u8>) {
        match self {
            Display::Plain(plain) => plain.refresh(Timestamp::now(), out),
            Display::Tty(tty) => tty.frame(Timestamp::now(), size, out),
            Display::RawJson | Display::Quiet => {}
        }
    }

    fn finish(&mut self, size: Size, out: &mut Vec<u8>) {
        match self {
            Display::Plain(plain) => plain.finish(Timestamp::now(), out),
            Display::Tty(tty) => tty.finish(Timestamp::now(), size, out),
            Display::RawJson | Display::Quiet => {}
        }
    }
}

/// The loop of the thread; ends when it is told to, or every sender is gone.
fn show(
    display: &mut Display,
    mut output: Output,
    receiver: &Receiver<Message>,
    intervals: Intervals,
) -> Vec<VertexWarning> {
    let mut warnings = Vec::new();
    let mut drawn: Option<Instant> = None;
    loop {
        let mut out = Vec::new();
        let size = output.size();
        match receiver.recv_timeout(intervals.idle) {
            Ok(Message::Status(status)) => {
                display.update(&status, size, &mut out);
                warnings.extend(status.warnings);
                if drawn.is_none_or(|drawn| drawn.elapsed() >= intervals.draw) {
                    drawn = Some(Instant::now());
                    display.draw(size, &mut out);
                }
            }
            Err(RecvTimeoutError::Timeout) => display.draw(size, &mut out),
            Ok(Message::Close) | Err(RecvTimeoutError::Disconnected) => {
                display.finish(size, &mut out);
                write(&mut output, &out);
                return distinct_warnings(&warnings);
            }
        }
        write(&mut output, &out);
    }
}

/// A display nobody reads any more must not stop the build.
fn write(output: &mut Output, bytes: &[u8]) {
    if !bytes.is_empty() && output.writer.write_all(bytes).is_ok() {
        let _ = output.writer.flush();
    }
}

fn tty_options(options: PrinterOptions) -> TtyOptions {
    let (colors, bad) = Colors::from_env(
        env("NO_COLOR").as_deref(),
        env("BUILDKIT_COLORS").as_deref(),
    );
    let usual = TtyOptions::default();
    // An entry that cannot be read costs its colour, not the build.
    drop(bad);
    TtyOptions {
        phase: if options.phase.is_empty() {
            usual.phase
        } else {
            options.phase
        },
        description: options.tty_description,
        colors,
        log_lines: env("BUILDKIT_TTY_LOG_LINES")
            .and_then(|lines| lines.parse().ok())
            .filter(|lines| *lines > 0)
            .unwrap_or(usual.log_lines),
    }
}

fn resolve_mode(asked: Mode, env: Option<String>, terminal: bool) -> diag::Result<Mode> {
    let mode = match (asked, env) {
        (Mode::Auto, Some(env)) => env.parse()?,
        (mode, _) => mode,
    };
    match (mode, terminal) {
        (Mode::Auto, true) => Ok(Mode::Tty),
        (Mode::Auto, false) => Ok(Mode::Plain),
        (Mode::Tty, false) => {
            Err(diag::Error::invalid("provided file is not a console")
                .context("failed to get console"))
        }
        (mode, _) => Ok(mode),
    }
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use oci::Digest;
    use progress::Vertex;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_mode_follows_the_flag_then_the_environment_then_the_terminal() {
        let env = |text: &str| Some(text.to_owned());
        for (asked, env, terminal, expected) in [
            (Mode::Auto, None, true, Some(Mode::Tty)),
            (Mode::Auto, None, false, Some(Mode::Plain)),
            (Mode::Auto, env("plain"), true, Some(Mode::Plain)),
            (Mode::RawJson, env("plain"), true, Some(Mode::RawJson)),
            (Mode::Tty, None, false, None),
            (Mode::Auto, env("bogus"), false, None),
        ] {
            assert_eq!(resolve_mode(asked, env, terminal).ok(), expected);
        }
        let error = resolve_mode(Mode::Tty, None, false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to get console: provided file is not a console"
        );
    }

    #[test]
    fn everything_sent_is_shown_before_the_printer_finishes() {
        let shared = Shared::default();
        let options = PrinterOptions {
            mode: Mode::Plain,
            ..PrinterOptions::default()
        };
        let printer = Printer::start(options, Output::writer(shared.clone())).unwrap();
        let now = Timestamp::UNIX_EPOCH;
        for name in ["a", "b", "c"] {
            let vertex = Vertex {
                started: Some(now),
                completed: Some(now),
                ..Vertex::new(Digest::of(name), name)
            };
            printer
                .progress()
                .send(SolveStatus::of_vertexes(vec![vertex]));
        }
        assert!(printer.finish().is_empty());
        let text = String::from_utf8(shared.0.lock().unwrap().clone()).unwrap();
        assert_eq!(
            text,
            "#1 a\n#1 DONE 0.0s\n\n#2 b\n#2 DONE 0.0s\n\n#3 c\n#3 DONE 0.0s\n"
        );
    }
}
