//! SSH agents and sockets of the client.

use proto::sshforward::CheckAgentRequest;
use proto::sshforward::ssh_client::SshClient;
use tonic::metadata::MetadataMap;

use crate::byte_stream::ByteStream;
use crate::codec::open_stream;
use crate::connection::Connection;
use crate::error::SessionError;
use crate::headers::append;
use crate::manager::Session;

const FORWARD: &str = "/moby.sshforward.v1.SSH/ForwardAgent";
/// The id used when none is named.
const DEFAULT_ID: &str = "default";

impl Session {
    /// Fails unless the client offers an agent of that id; empty is `default`.
    pub async fn check_ssh(&self, id: &str) -> Result<(), SessionError> {
        let mut client = SshClient::with_origin(self.connection(), Connection::origin());
        let request = CheckAgentRequest {
            id: id_or_default(id),
        };
        self.within(client.check_agent(request)).await.map(drop)
    }

    /// A new connection to the client's agent of that id; empty is `default`.
    pub async fn ssh_forward(&self, id: &str) -> Result<ByteStream, SessionError> {
        self.require(
            FORWARD,
            &format!("method {FORWARD} not supported by the client"),
        )?;
        let mut metadata = MetadataMap::new();
        append(&mut metadata, "buildkit.ssh.id", &id_or_default(id))?;
        let connection = self.connection();
        Ok(ByteStream::open(|outbound| {
            open_stream(connection, FORWARD, metadata, outbound)
        }))
    }
}

fn id_or_default(id: &str) -> String {
    if id.is_empty() { DEFAULT_ID } else { id }.to_owned()
}
