//! The `tty` display: a picture of the build at the bottom of a terminal, drawn again and again.
//!
//! Every frame goes up over the lines of the one before and writes over them. No line is wider than
//! the terminal, so the number of rows to go up is the number of lines, except after the terminal
//! became narrower: then each old line may fill several rows, and they are counted.

use jiff::{SignedDuration, Timestamp};
use progress::{Interval, Node, NodeId, SolveStatus, Tree, merge_intervals};
use std::collections::HashMap;
use std::fmt::Write as _;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::colors::{Color, Colors};
use crate::number::{bytes_text, seconds_text};
use crate::plain::print_error_logs;
use crate::screen::Screen;

/// How much narrower than the terminal the window of a step's log is.
const LOG_MARGIN: usize = 10;
/// The least number of rows of a log window, and its usual one.
const LOG_LINES_MIN: usize = 6;
/// Below this many cells a line has no room for a name and is left out.
const NAME_CELLS_MIN: usize = 12;

/// The size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Default for Size {
    /// What is assumed of a terminal that does not tell.
    fn default() -> Self {
        Size {
            width: 80,
            height: 10,
        }
    }
}

/// What the terminal display can be told.
#[derive(Clone, Debug)]
pub struct TtyOptions {
    /// The word of the first line, `Building` if nothing else is said.
    pub phase: String,
    /// What stands at the right of the first line, such as `docker-container:NAME`.
    pub description: String,
    /// The colours.
    pub colors: Colors,
    /// Rows of the window that shows what a running step writes (`BUILDKIT_TTY_LOG_LINES`).
    pub log_lines: usize,
}

impl Default for TtyOptions {
    fn default() -> Self {
        TtyOptions {
            phase: "Building".to_owned(),
            description: String::new(),
            colors: Colors::standard(),
            log_lines: LOG_LINES_MIN,
        }
    }
}

/// The terminal display.
#[derive(Debug, Default)]
pub struct TtyPrinter {
    options: TtyOptions,
    tree: Tree,
    windows: HashMap<NodeId, Window>,
    /// The widths of the lines of the last frame, and the terminal's then.
    drawn: Vec<usize>,
    drawn_width: usize,
}

/// What a step writes, as far as it is shown.
#[derive(Debug)]
struct Window {
    screen: Screen,
    bytes: usize,
    shown: usize,
}

/// A line of the picture.
#[derive(Debug)]
struct Job {
    name: String,
    status: String,
    intervals: Vec<Interval>,
    completed: bool,
    failed: bool,
    canceled: bool,
    node: Option<NodeId>,
    window: bool,
}

impl TtyPrinter {
    /// A display that has drawn nothing.
    pub fn new(options: TtyOptions) -> Self {
        TtyPrinter {
            options,
            ..Self::default()
        }
    }

    /// Takes in a status; it is seen in the next [`frame`](Self::frame).
    pub fn update(&mut self, status: &SolveStatus, now: Timestamp, size: Size) {
        self.tree.update(status, now);
        let width = size.width.saturating_sub(LOG_MARGIN).max(1);
        for log in &status.logs {
            let Some(id) = self.tree.find(&log.vertex) else {
                continue;
            };
            let window = self.windows.entry(id).or_insert_with(|| Window {
                screen: Screen::new(self.options.log_lines.max(LOG_LINES_MIN), width),
                bytes: 0,
                shown: 0,
            });
            window.bytes += log.data.len();
            window.screen.write(&log.data);
        }
    }

    /// The bytes that draw the build as it is at `now` over the last frame.
    pub fn frame(&mut self, now: Timestamp, size: Size, out: &mut Vec<u8>) {
        self.draw(now, size, false, out);
    }

    /// The last frame, in which every line stands, and the logs of what failed.
    pub fn finish(&mut self, now: Timestamp, size: Size, out: &mut Vec<u8>) {
        self.draw(now, size, true, out);
        print_error_logs(&self.tree, out);
    }

    fn draw(&mut self, now: Timestamp, size: Size, last: bool, out: &mut Vec<u8>) {
        let log_height = (size.height.saturating_sub(LOG_LINES_MIN + 1))
            .min(self.options.log_lines)
            .max(LOG_LINES_MIN);
        let jobs = self.place_windows(self.jobs(), size.height, log_height, last);
        let mut text = self.go_up(size.width);
        text += "\x1b[?25l";
        let mut lines = vec![self.headline(now, size.width, last)];
        for job in &jobs {
            let Some(line) = job_line(job, now, size.width) else {
                continue;
            };
            lines.push((line, self.color(job).cloned()));
            if job.window {
                lines.extend(self.window_lines(job.node, log_height, size.width));
            }
        }
        let widths: Vec<usize> = lines.iter().map(|(line, _)| line.width()).collect();
        for (line, color) in &lines {
            match color {
                // As stock does, the colour is reset after the end of the line.
                Some(color) => text += &color.apply(&format!("{line}\n")),
                None => {
                    text += line;
                    text.push('\n');
                }
            }
        }
        // A terminal that became narrower was erased by `go_up`.
        let stale = match size.width < self.drawn_width {
            true => 0,
            false => self.drawn.len().saturating_sub(lines.len()),
        };
        for _ in 0..stale {
            let _ = writeln!(text, "{}", " ".repeat(size.width));
        }
        if stale > 0 {
            let _ = write!(text, "\x1b[{stale}A\x1b[0G");
        }
        text += "\x1b[?25h";
        self.drawn = widths;
        self.drawn_width = size.width;
        out.extend_from_slice(text.as_bytes());
    }

    /// Moves the cursor to where the last frame began.
    fn go_up(&self, width: usize) -> String {
        if self.drawn.is_empty() {
            return "\x1b[1A\x1b[1B\x1b[0G".to_owned();
        }
        if width >= self.drawn_width {
            return "\x1b[1A".repeat(self.drawn.len()) + "\x1b[0G";
        }
        // The terminal has broken the old lines into rows of its new width: erase all of them.
        let rows: usize = self
            .drawn
            .iter()
            .map(|cells| cells.div_ceil(width.max(1)).max(1))
            .sum();
        "\x1b[1A".repeat(rows) + "\x1b[0G\x1b[J"
    }

    fn headline(&self, now: Timestamp, width: usize, last: bool) -> (String, Option<Color>) {
        let (completed, total) = self.tree.counts();
        let finished = if completed > 0 && completed == total && last {
            "FINISHED"
        } else {
            ""
        };
        let started = self.tree.started().unwrap_or(now);
        let line = format!(
            "[+] {} {}s ({completed}/{total}) {finished}",
            self.options.phase,
            seconds_text(now.duration_since(started), 1),
        );
        let line = if self.options.description.is_empty() {
            align(&line, "", width)
        } else {
            align(&line, &self.options.description, width.saturating_sub(1))
        };
        (cut(&line, width).to_owned(), None)
    }

    fn jobs(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        for (id, node) in self.tree.shown() {
            jobs.push(self.node_job(id, node));
            for (status, _) in node.statuses() {
                let amount = match (status.current, status.total) {
                    (0, 0) => String::new(),
                    (current, 0) => bytes_text(current),
                    (current, total) => {
                        format!("{} / {}", bytes_text(current), bytes_text(total))
                    }
                };
                jobs.push(Job {
                    name: format!("=> {}", status.id),
                    status: amount,
                    intervals: self.local(
                        status
                            .started
                            .map(|start| Interval {
                                start,
                                stop: status.completed,
                            })
                            .as_slice(),
                    ),
                    completed: status.completed.is_some(),
                    ..Job::empty()
                });
            }
            for warning in node.warnings() {
                let last = node.intervals().last().copied();
                jobs.push(Job {
                    name: format!("WARN: {}", warning.short),
                    intervals: self.local(last.as_slice()),
                    canceled: true,
                    ..Job::empty()
                });
            }
        }
        jobs
    }

    fn node_job(&self, id: NodeId, node: &Node) -> Job {
        let canceled = node.is_canceled();
        let failed = !node.error().is_empty() && !canceled;
        let mut name = node.name().replace('\t', " ");
        if canceled {
            name.insert_str(0, "CANCELED ");
        } else if failed {
            name.insert_str(0, "ERROR ");
        }
        if node.is_cached() {
            name.insert_str(0, "CACHED ");
        }
        Job {
            name,
            intervals: self.local(node.intervals()),
            completed: node.all_intervals_ended(),
            failed,
            canceled,
            node: Some(id),
            ..Job::empty()
        }
    }

    fn local(&self, intervals: &[Interval]) -> Vec<Interval> {
        let local = |interval: &Interval| Interval {
            start: self.tree.local(interval.start),
            stop: interval.stop.map(|stop| self.tree.local(stop)),
        };
        merge_intervals(intervals.iter().map(local).collect())
    }

    /// Gives log windows to the busiest running steps as far as there is room, and leaves out the
    /// lines that do not fit.
    fn place_windows(
        &mut self,
        mut jobs: Vec<Job>,
        height: usize,
        log_height: usize,
        all: bool,
    ) -> Vec<Job> {
        let mut candidates: Vec<(usize, usize)> = jobs
            .iter()
            .enumerate()
            .filter(|(_, job)| !job.completed)
            .filter_map(|(place, job)| {
                let window = self.windows.get(&job.node?)?;
                Some((window.bytes + window.shown * 50, place))
            })
            .collect();
        candidates.sort_by_key(|(weight, place)| (std::cmp::Reverse(*weight), *place));
        let running = jobs.iter().filter(|job| !job.completed).count();
        let mut free = height.saturating_sub(2).saturating_sub(running);
        let mut hidden = 0;
        for (_, place) in candidates {
            if free <= log_height + 3 {
                break;
            }
            let Some(window) = jobs[place].node.and_then(|id| self.windows.get_mut(&id)) else {
                continue;
            };
            window.shown += 1;
            hidden += window.screen.used_height();
            free -= log_height + 3;
            jobs[place].window = true;
        }
        if all {
            return jobs;
        }
        match height.checked_sub(2 + hidden) {
            Some(limit) => fit(jobs, limit),
            None => Vec::new(),
        }
    }

    fn window_lines(
        &mut self,
        node: Option<NodeId>,
        height: usize,
        width: usize,
    ) -> Vec<(String, Option<Color>)> {
        let Some(window) = node.and_then(|id| self.windows.get_mut(&id)) else {
            return Vec::new();
        };
        let columns = width.saturating_sub(LOG_MARGIN).max(1);
        window.screen.resize(height, columns);
        let rows = window.screen.text_rows();
        rows.iter()
            .map(|row| cut(&format!(" => => # {row}"), width).to_owned())
            .map(|line| (line, Some(Color::faint())))
            .collect()
    }

    fn color(&self, job: &Job) -> Option<&Color> {
        let colors = &self.options.colors;
        let color = match job {
            Job {
                completed: false, ..
            } => &None,
            Job { canceled: true, .. } => &colors.cancel,
            Job { failed: true, .. } => &colors.error,
            _ => &colors.run,
        };
        color.as_ref()
    }
}

impl Job {
    fn empty() -> Self {
        Job {
            name: String::new(),
            status: String::new(),
            intervals: Vec::new(),
            completed: false,
            failed: false,
            canceled: false,
            node: None,
            window: false,
        }
    }
}

/// ` => NAME STATUS          1.2s`, or nothing when there is no room or nothing has started.
fn job_line(job: &Job, now: Timestamp, width: usize) -> Option<String> {
    if job.intervals.is_empty() {
        return None;
    }
    let mut took: SignedDuration = job.intervals.iter().map(|i| i.duration(now)).sum();
    if took < SignedDuration::from_millis(50) {
        took = SignedDuration::ZERO;
    }
    let timer = format!(" {}s", seconds_text(took, 1));
    // Four cells for the arrow, one for the space before the timer, one to stay off the edge.
    let mut left = width.saturating_sub(4 + timer.len() + 2);
    let status_cells = job.status.width();
    // Where the amount would leave no room for the name, the name goes without it.
    let show_status = status_cells > 0 && left >= status_cells + 1 + NAME_CELLS_MIN;
    if show_status {
        left -= status_cells + 1;
    }
    if left < NAME_CELLS_MIN {
        return None;
    }
    let mut line = format!(" => {}", cut(&job.name, left));
    if show_status {
        line.push(' ');
        line += &job.status;
    }
    // Stock counts the newline as a cell of the timer.
    Some(align(&line, &timer, width - 1))
}

/// `left`, spaces, a space and `right`, as wide as `width` if they fit.
fn align(left: &str, right: &str, width: usize) -> String {
    let room = width.saturating_sub(right.width() + 1);
    let padding = room.saturating_sub(left.width());
    format!("{left}{} {right}", " ".repeat(padding))
}

/// As much of the beginning as fits into that many cells.
fn cut(text: &str, cells: usize) -> &str {
    let mut used = 0;
    for (at, character) in text.char_indices() {
        used += character.width().unwrap_or(0);
        if used > cells {
            return &text[..at];
        }
    }
    text
}

/// The last `limit` lines, with running ones from before in the place of completed ones.
fn fit(jobs: Vec<Job>, limit: usize) -> Vec<Job> {
    if jobs.len() <= limit {
        return jobs;
    }
    let mut before = jobs;
    let mut kept = before.split_off(before.len() - limit);
    before.retain(|job| !job.completed);
    let mut spare = before.len();
    kept.retain(|job| {
        let keep = !job.completed || spare == 0;
        spare = spare.saturating_sub(1);
        keep
    });
    let free = limit - kept.len();
    let mut placed = before.split_off(before.len() - free.min(before.len()));
    placed.append(&mut kept);
    placed
}

#[cfg(test)]
mod tests;
