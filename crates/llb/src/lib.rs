//! LLB, the build graph: typed operations, the graph they make, and its wire form.
//!
//! A [`Graph`] is a set of [`Vertex`]es named by the sha256 of their wire bytes; a
//! [`GraphBuilder`] makes one, [`from_proto`] reads one that came over the wire and keeps the
//! received bytes, because digests are taken over them. Nothing here runs anything.
//!
//! Source of the format: BuildKit's `solver/pb/ops.proto`.

mod from_proto;
mod graph;
mod json;
mod ops;
mod to_proto;

pub use from_proto::{
    LlbError, from_proto, mount_from_proto, net_mode_from_proto, platform_from_proto,
    source_location,
};
pub use graph::{Edge, Graph, GraphBuilder, ProgressGroup, Vertex, VertexMeta};
pub use json::{graph_json, op_json, op_lines};
pub use ops::{
    BuildOp, CacheSharing, ChownOpt, ClientFile, ContentCache, CopyAction, DiffOp, ExecOp,
    FileAction, FileActionKind, FileOp, MergeOp, MkDirAction, MkFileAction, Mount, MountKind,
    NetMode, Op, ProxyEnv, RmAction, SESSION_HOST, SecretEnv, SecurityMode, SourceOp,
    SymlinkAction, ULIMIT_NAMES, Ulimit, UserOpt,
};
pub use to_proto::{drop_empty_locations, marshal_vertex, platform_to_proto, to_proto};
