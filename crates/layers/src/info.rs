//! What is known about a layer besides its files.

use jiff::Timestamp;
use oci::{Descriptor, Digest};
use serde::{Deserialize, Serialize};

use crate::{LayerId, LayerStack};

/// Why a layer exists, in the words of the disk usage call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RecordType {
    /// Result of a step or a pulled layer.
    #[default]
    Regular,
    /// For the server's own use.
    Internal,
    /// A frontend's image.
    Frontend,
    /// A build context sent by a client.
    SourceLocal,
    /// A git checkout.
    SourceGitCheckout,
    /// A `RUN --mount=type=cache` directory.
    ExecCacheMount,
}

impl RecordType {
    const ALL: [RecordType; 6] = [
        RecordType::Regular,
        RecordType::Internal,
        RecordType::Frontend,
        RecordType::SourceLocal,
        RecordType::SourceGitCheckout,
        RecordType::ExecCacheMount,
    ];

    /// The name on the wire, such as `source.local`.
    pub fn name(self) -> &'static str {
        match self {
            RecordType::Regular => "regular",
            RecordType::Internal => "internal",
            RecordType::Frontend => "frontend",
            RecordType::SourceLocal => "source.local",
            RecordType::SourceGitCheckout => "source.git.checkout",
            RecordType::ExecCacheMount => "exec.cachemount",
        }
    }

    /// The type of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What whoever makes a layer says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerNote {
    /// For people, such as `[2/5] RUN make` or `pulled from docker.io/library/busybox:latest`.
    pub description: String,
    /// Why it exists.
    pub record_type: RecordType,
}

impl LayerNote {
    /// A regular layer of that description.
    pub fn new(description: impl Into<String>) -> Self {
        LayerNote {
            description: description.into(),
            record_type: RecordType::Regular,
        }
    }

    /// The same with another type.
    #[must_use]
    pub fn of_type(mut self, record_type: RecordType) -> Self {
        self.record_type = record_type;
        self
    }
}

/// A layer packed as an archive in the content store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerBlob {
    /// The packed archive: OCI layer media type, digest and size.
    pub descriptor: Descriptor,
    /// Digest of the archive before packing.
    pub diff_id: Digest,
}

/// What a layer was made on. A long chain of steps takes one id for each of them, not all below.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MadeOn {
    /// The stack that this layer was made on, with this layer on top.
    Layer(LayerId),
    /// Any other stack.
    Stack(LayerStack),
}

impl MadeOn {
    /// The layers named, the topmost last. They and what they were made on are all that is below.
    pub fn layers(&self) -> &[LayerId] {
        match self {
            MadeOn::Layer(id) => std::slice::from_ref(id),
            MadeOn::Stack(stack) => stack.as_slice(),
        }
    }
}

/// All that is known about a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// Its name.
    pub id: LayerId,
    /// For people.
    pub description: String,
    /// Why it exists.
    pub record_type: RecordType,
    /// When it was committed.
    pub created_at: Timestamp,
    /// When it was used last, if it was since.
    pub last_used_at: Option<Timestamp>,
    /// How often it was used.
    pub usage_count: u64,
    /// Bytes of disk blocks it occupies.
    pub size: u64,
    /// What it was made on, if it was made by [`crate::LayerStore::writable`].
    pub made_on: Option<MadeOn>,
    /// It packed, the way that was recorded first.
    pub blob: Option<LayerBlob>,
    /// Whether something uses it at the moment.
    pub held: bool,
}
