//! The state a sequence of statuses adds up to.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};
use oci::Digest;

use crate::{
    Interval, Logs, SolveStatus, Vertex, VertexLog, VertexStatus, VertexWarning, merge_intervals,
};

/// The place of a [`Node`] in its [`Tree`]; never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

/// What is shown as one step: a vertex, or a progress group of several.
#[derive(Clone, Debug, Default)]
pub struct Node {
    name: String,
    error: String,
    cached: bool,
    hidden: bool,
    intervals: BTreeMap<Timestamp, Interval>,
    merged: Vec<Interval>,
    statuses: Vec<(VertexStatus, u64)>,
    logs: Logs,
    warnings: Vec<VertexWarning>,
    changes: u64,
    announced: Option<Vertex>,
    members: HashMap<Digest, Vertex>,
}

/// A build as its statuses have told it so far.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    nodes: Vec<Node>,
    by_digest: HashMap<Digest, NodeId>,
    by_group: HashMap<String, NodeId>,
    shown: Vec<NodeId>,
    started: Option<Timestamp>,
    skew: Option<SignedDuration>,
    warnings: Vec<VertexWarning>,
}

impl Node {
    /// What users call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Why it failed; empty when it did not.
    pub fn error(&self) -> &str {
        &self.error
    }

    /// True when it failed only because the build was cancelled.
    pub fn is_canceled(&self) -> bool {
        self.error.ends_with("context canceled")
    }

    /// Whether its result came from the cache; of a group: of every member.
    pub fn is_cached(&self) -> bool {
        self.cached
    }

    /// Whether it is a group with nothing to show yet.
    pub fn is_hidden(&self) -> bool {
        self.hidden
    }

    /// Whether it has started.
    pub fn is_started(&self) -> bool {
        !self.merged.is_empty()
    }

    /// Whether it is not working now, after having worked.
    pub fn is_completed(&self) -> bool {
        self.completed().is_some()
    }

    /// When it completed, unless it works now or never started.
    pub fn completed(&self) -> Option<Timestamp> {
        self.merged.last()?.stop
    }

    /// When it worked, without overlaps, in order of time.
    pub fn intervals(&self) -> &[Interval] {
        &self.merged
    }

    /// Whether every interval it ever reported has ended.
    pub fn all_intervals_ended(&self) -> bool {
        self.intervals
            .values()
            .all(|interval| interval.stop.is_some())
    }

    /// How long it worked in all by `now`.
    pub fn duration(&self, now: Timestamp) -> SignedDuration {
        self.merged
            .iter()
            .map(|interval| interval.duration(now))
            .sum()
    }

    /// Its pieces of work, in the order they started, each with how often it was updated.
    pub fn statuses(&self) -> impl Iterator<Item = (&VertexStatus, u64)> {
        self.statuses
            .iter()
            .map(|(status, updates)| (status, *updates))
    }

    /// What it wrote.
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// What it warned about.
    pub fn warnings(&self) -> &[VertexWarning] {
        &self.warnings
    }

    /// How much has been said about it: grows with every change.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    fn set_interval(&mut self, start: Timestamp, stop: Option<Timestamp>) -> bool {
        let interval = Interval { start, stop };
        let changed = self.intervals.insert(start, interval) != Some(interval);
        if changed {
            self.merged = merge_intervals(self.intervals.values().copied().collect());
        }
        changed
    }

    /// Takes over the state of its members; says whether anything changed and whether it became
    /// visible by it.
    fn refresh_group(&mut self) -> (bool, bool) {
        let mut changed = false;
        let mut reveal = false;
        let mut cached = true;
        let mut error = std::mem::take(&mut self.error);
        let before = error.clone();
        let mut members: Vec<Vertex> = self.members.values().cloned().collect();
        members.sort_by_key(|member| (member.started, member.digest));
        for member in members {
            if let Some(started) = member.started {
                changed |= self.set_interval(started, member.completed);
                reveal |= !member.progress_group.is_some_and(|group| group.weak);
            }
            cached &= member.cached;
            if error.is_empty() {
                error = member.error;
            } else {
                reveal = true;
            }
        }
        changed |= cached != self.cached || error != before;
        self.cached = cached;
        self.error = error;
        let revealed = reveal && self.hidden;
        if revealed {
            self.hidden = false;
        }
        (changed || revealed, revealed)
    }
}

impl Tree {
    /// A build of which nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a status received at `now`; returns the nodes of which something new can be told,
    /// in the order it was told.
    pub fn update(&mut self, status: &SolveStatus, now: Timestamp) -> Vec<NodeId> {
        let mut changed = Vec::new();
        let mut groups = Vec::new();
        for vertex in &status.vertexes {
            if self.started.is_none() {
                self.started = vertex.started;
            }
            if vertex.progress_group.is_some() {
                let id = self.join_group(vertex);
                if !groups.contains(&id) {
                    groups.push(id);
                }
            } else {
                changed.extend(self.update_vertex(vertex, now));
            }
        }
        for id in groups {
            changed.extend(self.update_group(id, now));
        }
        for entry in &status.statuses {
            changed.extend(self.update_status(entry));
        }
        for warning in &status.warnings {
            self.warnings.push(warning.clone());
            if let Some(id) = self.by_digest.get(&warning.vertex).copied() {
                let node = &mut self.nodes[id.0];
                node.warnings.push(warning.clone());
                node.changes += 1;
            }
        }
        for log in &status.logs {
            changed.extend(self.update_log(log));
        }
        let mut seen = std::collections::HashSet::new();
        changed.retain(|id| seen.insert(*id));
        changed
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Every node that was ever mentioned, also those that have not started, in order of appearance.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes
            .iter()
            .enumerate()
            .map(|(index, node)| (NodeId(index), node))
    }

    /// The nodes that are shown, in the order they started.
    pub fn shown(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.shown.iter().map(|id| (*id, &self.nodes[id.0]))
    }

    /// The node a vertex is shown as.
    pub fn find(&self, digest: &Digest) -> Option<NodeId> {
        self.by_digest.get(digest).copied()
    }

    /// Completed and all vertices, counted as clients print them: `(5/7)`.
    pub fn counts(&self) -> (usize, usize) {
        let counted = self.by_digest.values().chain(self.by_group.values());
        counted
            .map(|id| &self.nodes[id.0])
            .filter(|node| !node.hidden)
            .fold((0, 0), |(completed, total), node| {
                (completed + usize::from(node.is_completed()), total + 1)
            })
    }

    /// When the build started, by this machine's clock.
    pub fn started(&self) -> Option<Timestamp> {
        Some(self.local(self.started?))
    }

    /// A time of the builder's clock in this machine's.
    pub fn local(&self, time: Timestamp) -> Timestamp {
        time.checked_add(self.skew.unwrap_or_default())
            .unwrap_or(time)
    }

    /// Every warning, also of unknown vertices, in the order they came.
    pub fn warnings(&self) -> &[VertexWarning] {
        &self.warnings
    }

    /// Forgets all lines of a node's log but the last `keep`.
    pub fn keep_last_logs(&mut self, id: NodeId, keep: usize) {
        self.nodes[id.0].logs.keep_last(keep);
    }

    fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId(self.nodes.len() - 1)
    }

    fn note_skew(&mut self, started: Timestamp, now: Timestamp) {
        self.skew.get_or_insert_with(|| now.duration_since(started));
    }

    fn join_group(&mut self, vertex: &Vertex) -> NodeId {
        let Some(group) = &vertex.progress_group else {
            return self.update_target(vertex);
        };
        let id = match self.by_group.get(&group.id) {
            Some(id) => *id,
            None => {
                let id = self.add(Node {
                    name: group.name.clone(),
                    hidden: true,
                    ..Node::default()
                });
                self.by_group.insert(group.id.clone(), id);
                id
            }
        };
        self.nodes[id.0]
            .members
            .insert(vertex.digest, vertex.clone());
        self.by_digest.insert(vertex.digest, id);
        id
    }

    fn update_target(&mut self, vertex: &Vertex) -> NodeId {
        match self.by_digest.get(&vertex.digest) {
            Some(id) => *id,
            None => {
                let id = self.add(Node::default());
                self.by_digest.insert(vertex.digest, id);
                id
            }
        }
    }

    fn update_vertex(&mut self, vertex: &Vertex, now: Timestamp) -> Option<NodeId> {
        let id = self.update_target(vertex);
        let node = &mut self.nodes[id.0];
        let was_started = node.is_started();
        // Servers announce a vertex again without times; that must not reset what is known of it.
        if !was_started || vertex.started.is_some() {
            node.name.clone_from(&vertex.name);
            node.error.clone_from(&vertex.error);
            node.cached = vertex.cached;
        }
        let started = vertex.started?;
        let news = node.announced.as_ref().is_none_or(|old| {
            old.name != vertex.name
                || old.started != vertex.started
                || (old.completed != vertex.completed && vertex.completed.is_some())
                || old.cached != vertex.cached
                || old.error != vertex.error
        });
        node.announced = Some(vertex.clone());
        node.set_interval(started, vertex.completed);
        if news {
            node.changes += 1;
        }
        if !was_started {
            self.shown.push(id);
            self.note_skew(started, now);
        }
        news.then_some(id)
    }

    fn update_group(&mut self, id: NodeId, now: Timestamp) -> Option<NodeId> {
        let node = &mut self.nodes[id.0];
        let (changed, revealed) = node.refresh_group();
        let first = node.merged.first().map(|interval| interval.start);
        if changed {
            node.changes += 1;
        }
        let hidden = node.hidden;
        if let Some(first) = first {
            self.note_skew(first, now);
        }
        if revealed {
            self.shown.push(id);
        }
        (changed && !hidden).then_some(id)
    }

    fn update_status(&mut self, status: &VertexStatus) -> Option<NodeId> {
        let id = self.find(&status.vertex)?;
        let node = &mut self.nodes[id.0];
        node.changes += 1;
        match node
            .statuses
            .iter_mut()
            .find(|(known, _)| known.id == status.id)
        {
            Some((known, updates)) => {
                known.clone_from(status);
                *updates += 1;
            }
            None if status.started.is_some() => node.statuses.push((status.clone(), 1)),
            None => {}
        }
        Some(id)
    }

    fn update_log(&mut self, log: &VertexLog) -> Option<NodeId> {
        let id = self.find(&log.vertex)?;
        let node = &mut self.nodes[id.0];
        let since_start = node
            .merged
            .last()
            .map(|interval| log.timestamp.duration_since(interval.start))
            .unwrap_or_default();
        node.logs.push(since_start, &log.data);
        node.changes += 1;
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ProgressGroup;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn vertex(name: &str, started: Option<i64>, completed: Option<i64>) -> Vertex {
        Vertex {
            started: started.map(at),
            completed: completed.map(at),
            ..Vertex::new(Digest::of(name), name)
        }
    }

    fn fold(tree: &mut Tree, vertices: Vec<Vertex>) -> Vec<NodeId> {
        tree.update(&SolveStatus::of_vertexes(vertices), at(100))
    }

    #[test]
    fn a_vertex_is_shown_from_when_it_starts_and_keeps_its_place() {
        let mut tree = Tree::new();
        assert!(fold(&mut tree, vec![vertex("a", None, None)]).is_empty());
        assert_eq!(tree.shown().count(), 0);
        assert_eq!(tree.counts(), (0, 1));
        fold(&mut tree, vec![vertex("b", Some(1), None)]);
        fold(&mut tree, vec![vertex("a", Some(2), Some(3))]);
        let names: Vec<_> = tree.shown().map(|(_, node)| node.name()).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(tree.counts(), (1, 2));
        assert_eq!(tree.started(), Some(at(100)));
    }

    #[test]
    fn a_later_announcement_without_times_changes_nothing() {
        let mut tree = Tree::new();
        let done = Vertex {
            error: "boom".into(),
            ..vertex("a", Some(1), Some(2))
        };
        assert_eq!(fold(&mut tree, vec![done.clone()]).len(), 1);
        assert!(fold(&mut tree, vec![done]).is_empty());
        assert!(fold(&mut tree, vec![vertex("a", None, None)]).is_empty());
        let (_, node) = tree.shown().next().unwrap();
        assert_eq!(node.error(), "boom");
    }

    #[test]
    fn a_group_is_one_node_and_cached_only_when_all_members_are() {
        let mut tree = Tree::new();
        let member = |name: &str, weak, cached, started| Vertex {
            cached,
            progress_group: Some(ProgressGroup {
                id: "g".into(),
                name: "COPY --link".into(),
                weak,
            }),
            ..vertex(name, started, started)
        };
        fold(&mut tree, vec![member("a", true, true, Some(1))]);
        assert_eq!(tree.shown().count(), 0, "weak members alone are not shown");
        fold(&mut tree, vec![member("b", false, true, Some(2))]);
        let (id, node) = tree.shown().next().unwrap();
        assert_eq!((node.name(), node.is_cached()), ("COPY --link", true));
        assert_eq!(tree.find(&Digest::of("a")), Some(id));
        fold(&mut tree, vec![member("c", false, false, Some(3))]);
        assert!(!tree.node(id).is_cached());
        assert_eq!(tree.shown().count(), 1);
    }

    #[test]
    fn statuses_and_logs_go_to_their_vertex() {
        let mut tree = Tree::new();
        fold(&mut tree, vec![vertex("a", Some(10), None)]);
        let digest = Digest::of("a");
        let mut status = SolveStatus {
            statuses: vec![VertexStatus::started(digest, "pull", at(11))],
            logs: vec![VertexLog {
                vertex: digest,
                stream: 1,
                timestamp: at(12),
                data: Bytes::from_static(b"hi\n"),
            }],
            ..SolveStatus::default()
        };
        assert_eq!(tree.update(&status, at(100)).len(), 1);
        status.logs[0].vertex = Digest::of("unknown");
        status.statuses[0].current = 5;
        tree.update(&status, at(100));
        let (_, node) = tree.shown().next().unwrap();
        let seen: Vec<_> = node.statuses().map(|(s, n)| (s.current, n)).collect();
        assert_eq!(seen, [(5, 2)]);
        let (_, line) = node.logs().lines_from(0).next().unwrap();
        assert_eq!(line.since_start, SignedDuration::from_secs(2));
    }
}
