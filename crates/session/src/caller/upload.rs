//! What the client reads from its stdin, behind an URL of the session.

use llb::SESSION_HOST;
use tokio::io::AsyncRead;
use tonic::metadata::MetadataMap;

use crate::byte_stream::ByteStream;
use crate::codec::open_stream;
use crate::error::SessionError;
use crate::headers::append;
use crate::manager::Session;

const PULL: &str = "/moby.upload.v1.Upload/Pull";

impl Session {
    /// The content behind `http://buildkit-session/<path>`; it can be read once.
    pub async fn upload(
        &self,
        path: &str,
    ) -> Result<impl AsyncRead + Send + Unpin + use<>, SessionError> {
        self.require(PULL, &format!("method {PULL} not supported by the client"))?;
        let mut metadata = MetadataMap::new();
        append(&mut metadata, "urlpath", path)?;
        append(&mut metadata, "urlhost", SESSION_HOST)?;
        let connection = self.connection();
        Ok(ByteStream::open(|outbound| {
            open_stream(connection, PULL, metadata, outbound)
        }))
    }
}
