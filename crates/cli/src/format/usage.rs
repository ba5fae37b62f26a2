//! A record of a build cache with all that is known of it.

use proto::control::UsageRecord;

use super::{TabWriter, go_time, timestamp};

/// What programs word in different ways.
pub(crate) struct RecordWords {
    /// The label of the parents, and what stands between them.
    pub(crate) parents: &'static str,
    pub(crate) between_parents: &'static str,
    /// Writes a number of bytes.
    pub(crate) size: fn(i64) -> String,
    /// Writes when a record was last used, if it ever was.
    pub(crate) last_used: fn(&UsageRecord) -> String,
}

/// Writes a line for each thing that is known, and an empty one.
pub(crate) fn write_details(writer: &mut TabWriter, record: &UsageRecord, words: &RecordWords) {
    let mut line = |name: &str, value: &str| writer.line(format!("{name}:\t{value}"));
    line("ID", &record.id);
    if !record.parents.is_empty() {
        line(words.parents, &record.parents.join(words.between_parents));
    }
    let created = record.created_at.as_ref();
    let created = created.map(|time| go_time(timestamp(time.seconds, time.nanos)));
    line("Created at", &created.unwrap_or_default());
    line("Mutable", &record.mutable.to_string());
    line("Reclaimable", &(!record.in_use).to_string());
    line("Shared", &record.shared.to_string());
    line("Size", &(words.size)(record.size));
    if !record.description.is_empty() {
        line("Description", &record.description);
    }
    line("Usage count", &record.usage_count.to_string());
    if record.last_used_at.is_some() {
        line("Last used", &(words.last_used)(record));
    }
    if !record.record_type.is_empty() {
        line("Type", &record.record_type);
    }
    writer.write("\n");
}
