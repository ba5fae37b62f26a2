//! The `plain` display: lines of text that are never taken back.
//!
//! One vertex is current at a time; its lines are printed as they come. Others wait until the
//! current one completes, has been quiet or current for long, or they complete themselves. Every
//! switch is marked: `#4 ...` for the one left, a blank line, and the name of the one that follows.

use std::collections::{BTreeSet, HashMap};
use std::io::Write as _;

use jiff::{SignedDuration, Timestamp};
use progress::{LogLine, Node, NodeId, SolveStatus, Tree, VertexStatus};

use crate::number::{bytes_text, seconds_text};

/// How long a busy vertex keeps the output at least.
const ANTI_FLICKER_S: f64 = 5.0;
/// How long a vertex with news waits at most.
const DELAY_MAX_S: f64 = 10.0;
/// How often a status without much progress is repeated.
const STATUS_INTERVAL: SignedDuration = SignedDuration::from_secs(5);
/// The part of its total by which a status must have grown to be repeated earlier.
const STATUS_STEP: f64 = 0.05;
/// How many lines of log are shown again under an error.
const ERROR_LOG_LINES: usize = 10;
/// The longest name printed with `PROGRESS_NO_TRUNC=0`, in bytes.
const NAME_BYTES_MAX: usize = 72;

/// What the plain display can be told.
#[derive(Clone, Debug, Default)]
pub struct PlainOptions {
    /// A line about the whole build, printed as step 0 before the first one.
    pub description: String,
    /// Whether long names are cut.
    pub truncate_names: bool,
}

/// The plain display.
#[derive(Debug, Default)]
pub struct PlainPrinter {
    options: PlainOptions,
    tree: Tree,
    nodes: HashMap<NodeId, Shown>,
    pending: BTreeSet<NodeId>,
    statuses: HashMap<String, (i64, Timestamp)>,
    current: Option<NodeId>,
    printed_any: bool,
    next_index: usize,
}

/// What has been printed of a node.
#[derive(Debug, Default)]
struct Shown {
    /// The number of the step, from 1; 0 before its first line.
    index: usize,
    /// How much of the node's change count is accounted for.
    changes: u64,
    /// Changes since it was last finished or left.
    count: u64,
    /// When the first of these changes came.
    block_start: Option<Timestamp>,
    /// For each status, by place, the update that was last considered.
    statuses: Vec<u64>,
    warnings: usize,
    /// The first log line not printed whole.
    log_line: usize,
    /// How many bytes of that line are on the screen.
    log_offset: usize,
}

impl Shown {
    /// Whether the node has lines that were not printed, besides its name and its end.
    fn is_behind(&self, node: &Node, printed: &HashMap<String, (i64, Timestamp)>) -> bool {
        let mut statuses = node.statuses().enumerate();
        let logs = node.logs();
        node.warnings().len() > self.warnings
            || logs.lines_from(self.log_line).any(|(number, line)| {
                number > self.log_line || log_text(line).len() > self.log_offset
            })
            || statuses.any(|(place, (status, updates))| {
                self.statuses.get(place) != Some(&updates)
                    && printed
                        .get(&status.id)
                        .is_none_or(|last| moved_enough(status, last))
            })
    }
}

/// How a vertex competes for being printed.
struct Claim {
    id: NodeId,
    block_time_s: f64,
    speed: f64,
    over_limit: bool,
}

impl PlainPrinter {
    /// A display that has printed nothing.
    pub fn new(options: PlainOptions) -> Self {
        PlainPrinter {
            options,
            ..Self::default()
        }
    }

    /// Takes in a status; nothing is printed before the next [`refresh`](Self::refresh).
    pub fn update(&mut self, status: &SolveStatus, now: Timestamp) {
        let changed = self.tree.update(status, now);
        let warned = status
            .warnings
            .iter()
            .filter_map(|warning| self.tree.find(&warning.vertex));
        let touched: Vec<NodeId> = changed.iter().copied().chain(warned).collect();
        for id in touched {
            let changes = self.tree.node(id).changes();
            let shown = self.nodes.entry(id).or_default();
            if shown.count == 0 {
                shown.block_start = Some(now);
            }
            shown.count += changes - shown.changes;
            shown.changes = changes;
        }
        self.pending.extend(changed);
    }

    /// Prints what there is to print now.
    pub fn refresh(&mut self, now: Timestamp, out: &mut Vec<u8>) {
        if !self.print_news(now, out) {
            self.print_open(now, out);
        }
    }

    /// Prints what is new; false when no open vertex has anything new to tell.
    fn print_news(&mut self, now: Timestamp, out: &mut Vec<u8>) -> bool {
        let visible = |id: &NodeId| !self.tree.node(*id).is_hidden();
        let (mut completed, mut rest): (Vec<NodeId>, Vec<NodeId>) = self
            .pending
            .iter()
            .copied()
            .filter(visible)
            .partition(|id| self.tree.node(*id).is_completed());
        let current = self.current;
        let current_completed = current.is_some_and(|id| completed.contains(&id));
        completed.sort_by_key(|id| (Some(*id) != current, self.tree.node(*id).completed()));
        for id in completed {
            self.print_node(id, now, out);
        }
        if rest.is_empty() {
            return false;
        }
        if let Some(id) = current
            && rest.contains(&id)
        {
            self.print_node(id, now, out);
        }
        if let Some(id) = current
            && !current_completed
            && !rest.contains(&id)
        {
            rest.push(id);
        }
        if let Some(next) = self.choose(&rest, current.filter(|_| !current_completed), now) {
            self.print_node(next, now, out);
        }
        true
    }

    /// Prints the rest, and the logs of what failed. The display is not to be used after it.
    pub fn finish(&mut self, now: Timestamp, out: &mut Vec<u8>) {
        // What is still open was cut off; its name alone would tell nothing.
        let (tree, statuses) = (&self.tree, &self.statuses);
        let nodes = &self.nodes;
        self.pending.retain(|id| {
            let node = tree.node(*id);
            node.is_completed()
                || nodes
                    .get(id)
                    .is_some_and(|shown| shown.is_behind(node, statuses))
        });
        self.print_news(now, out);
        let waiting: Vec<NodeId> = self.pending.iter().copied().collect();
        for id in waiting {
            if !self.tree.node(id).is_hidden() {
                self.print_node(id, now, out);
            }
        }
        print_error_logs(&self.tree, out);
    }

    /// With nothing new to tell, makes any open vertex current.
    fn print_open(&mut self, now: Timestamp, out: &mut Vec<u8>) {
        let open = |id: NodeId| {
            let node = self.tree.node(id);
            node.is_started() && !node.is_completed() && !node.is_hidden()
        };
        if self.current.is_some_and(open) {
            return;
        }
        let next = self.tree.shown().map(|(id, _)| id).find(|id| open(*id));
        if let Some(id) = next {
            self.print_node(id, now, out);
        }
    }

    /// Which vertex is to follow the current one now, if any.
    fn choose(&self, rest: &[NodeId], current: Option<NodeId>, now: Timestamp) -> Option<NodeId> {
        let claims: Vec<Claim> = rest
            .iter()
            .filter_map(|id| self.claim(*id, current, now))
            .collect();
        let mut max: Option<&Claim> = None;
        for claim in &claims {
            if claim.over_limit || max.is_none_or(|max| max.speed < claim.speed) {
                max = Some(claim);
            }
        }
        let Some(current) = current else {
            return max.map(|claim| claim.id);
        };
        if let Some(waiting) = claims.iter().find(|claim| claim.over_limit) {
            return Some(waiting.id);
        }
        let sum: f64 = claims.iter().map(|claim| claim.speed).sum();
        let mine = claims.iter().find(|claim| claim.id == current)?;
        let patience = ANTI_FLICKER_S / (1.0 - mine.speed / sum);
        (patience < mine.block_time_s)
            .then_some(max?.id)
            .filter(|id| *id != current)
    }

    fn claim(&self, id: NodeId, current: Option<NodeId>, now: Timestamp) -> Option<Claim> {
        let shown = self.nodes.get(&id)?;
        let block_time_s = now.duration_since(shown.block_start?).as_secs_f64();
        Some(Claim {
            id,
            block_time_s,
            speed: shown.count as f64 / block_time_s.max(1e-9),
            over_limit: block_time_s > DELAY_MAX_S && Some(id) != current,
        })
    }

    /// Prints what is new of a node and makes it current, or nothing current when it completed.
    fn print_node(&mut self, id: NodeId, now: Timestamp, out: &mut Vec<u8>) {
        let mut shown = self.nodes.remove(&id).unwrap_or_default();
        if shown.index == 0 {
            self.next_index += 1;
            shown.index = self.next_index;
        }
        if self.current != Some(id) {
            self.switch(id, shown.index, out);
        }
        let open_status = self.print_statuses(id, &mut shown, out);
        let node = self.tree.node(id);
        for warning in node.warnings().iter().skip(shown.warnings) {
            line(
                out,
                format_args!("#{} WARN: {}", shown.index, warning.short),
            );
        }
        shown.warnings = node.warnings().len();
        self.print_logs(id, &mut shown, out);
        self.current = Some(id);
        if self.tree.node(id).is_completed() && !open_status {
            self.current = None;
            shown.count = 0;
            self.print_end(id, shown.index, now, out);
        }
        self.pending.remove(&id);
        self.nodes.insert(id, shown);
    }

    /// Leaves the current vertex and prints the name of the next.
    fn switch(&mut self, next: NodeId, index: usize, out: &mut Vec<u8>) {
        if let Some(old) = self.current
            && let Some(shown) = self.nodes.get_mut(&old)
        {
            if self.tree.node(old).logs().is_partial() {
                out.push(b'\n');
            }
            shown.log_offset = 0;
            shown.count = 0;
            line(out, format_args!("#{} ...", shown.index));
        }
        if self.printed_any {
            out.push(b'\n');
        } else if !self.options.description.is_empty() {
            line(out, format_args!("#0 {}\n", self.options.description));
        }
        self.printed_any = true;
        let name = self.tree.node(next).name();
        if self.options.truncate_names && name.len() > NAME_BYTES_MAX {
            let end = name.floor_char_boundary(NAME_BYTES_MAX);
            line(out, format_args!("#{index} {}...", &name[..end]));
        } else {
            line(out, format_args!("#{index} {name}"));
        }
    }

    /// Prints the statuses that moved enough; says whether one of those printed is still open.
    fn print_statuses(&mut self, id: NodeId, shown: &mut Shown, out: &mut Vec<u8>) -> bool {
        let mut open = false;
        for (place, (status, updates)) in self.tree.node(id).statuses().enumerate() {
            if shown.statuses.len() <= place {
                shown.statuses.push(0);
            }
            if shown.statuses[place] == updates {
                continue;
            }
            shown.statuses[place] = updates;
            let last = self.statuses.get(&status.id);
            if last.is_some_and(|last| !moved_enough(status, last)) {
                continue;
            }
            self.statuses
                .insert(status.id.clone(), (status.current, status.timestamp));
            open |= status.completed.is_none();
            line(
                out,
                format_args!("#{} {}{}", shown.index, status.id, status_suffix(status)),
            );
        }
        open
    }

    fn print_logs(&mut self, id: NodeId, shown: &mut Shown, out: &mut Vec<u8>) {
        let logs = self.tree.node(id).logs();
        let (count, partial) = (logs.len(), logs.is_partial());
        for (number, entry) in logs.lines_from(shown.log_line) {
            let text = log_text(entry);
            if number == shown.log_line && shown.log_offset != 0 {
                out.extend_from_slice(&text[shown.log_offset.min(text.len())..]);
            } else {
                let _ = write!(out, "#{} ", shown.index);
                out.extend_from_slice(&text);
            }
            if number + 1 == count && partial {
                shown.log_offset = text.len();
            } else {
                out.push(b'\n');
                shown.log_offset = 0;
            }
        }
        shown.log_line = if partial {
            count.saturating_sub(1)
        } else {
            count
        };
        self.tree.keep_last_logs(id, ERROR_LOG_LINES);
    }

    fn print_end(&self, id: NodeId, index: usize, now: Timestamp, out: &mut Vec<u8>) {
        let node = self.tree.node(id);
        if node.logs().is_partial() {
            out.push(b'\n');
        }
        if node.is_canceled() {
            line(out, format_args!("#{index} CANCELED"));
        } else if !node.error().is_empty() {
            line(out, format_args!("#{index} ERROR: {}", node.error()));
        } else if node.is_cached() {
            line(out, format_args!("#{index} CACHED"));
        } else {
            let took = seconds_text(node.duration(now), 1);
            line(out, format_args!("#{index} DONE {took}s"));
        }
    }
}

/// Prints the logs of every vertex that failed by itself, each in a block between dashes.
pub(crate) fn print_error_logs(tree: &Tree, out: &mut Vec<u8>) {
    for (_, node) in tree.shown() {
        if node.error().is_empty() || node.is_canceled() {
            continue;
        }
        line(out, format_args!("------\n > {}:", node.name()));
        for (_, entry) in node.logs().lines_from(0) {
            out.extend_from_slice(&log_text(entry));
            out.push(b'\n');
        }
        line(out, format_args!("------"));
    }
}

fn line(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _ = writeln!(out, "{text}");
}

/// A log line after the seconds since its vertex started, in at most five characters.
fn log_text(entry: &LogLine) -> Vec<u8> {
    let seconds = entry.since_start.as_secs_f64();
    let decimals = match seconds {
        s if s < 10.0 => 3,
        s if s < 100.0 => 2,
        _ => 1,
    };
    let mut text = format!("{seconds:.decimals$} ").into_bytes();
    text.extend_from_slice(&entry.data);
    text
}

fn moved_enough(status: &VertexStatus, (current, timestamp): &(i64, Timestamp)) -> bool {
    if status.completed.is_some() {
        return true;
    }
    let step = if status.total > 0 {
        status.current.saturating_sub(*current) as f64 / status.total as f64
    } else {
        0.0
    };
    step >= STATUS_STEP || status.timestamp.duration_since(*timestamp) >= STATUS_INTERVAL
}

/// What follows the id of a status: how much, how long, and whether it is done.
fn status_suffix(status: &VertexStatus) -> String {
    let mut text = String::new();
    if status.total != 0 {
        let (current, total) = (bytes_text(status.current), bytes_text(status.total));
        text += &format!(" {current} / {total}");
    } else if status.current != 0 {
        text += &format!(" {}", bytes_text(status.current));
    }
    if let Some(started) = status.started {
        let end = status.completed.unwrap_or(status.timestamp);
        let took = end.duration_since(started);
        if took.as_secs_f64() > 0.01 {
            text += &format!(" {}s", seconds_text(took, 1));
        }
    }
    if status.completed.is_some() {
        text += " done";
    }
    text
}

#[cfg(test)]
mod tests;
