//! A client's judgement of sources.

use proto::policysession::{CheckPolicyRequest, CheckPolicyResponse, PolicyVerifierClient};

use crate::connection::Connection;
use crate::error::SessionError;
use crate::manager::Session;

impl Session {
    /// Asks whether a source may be used. A client may have to look for signatures on the net first,
    /// so it has as long as its session lasts.
    pub async fn check_policy(
        &self,
        request: CheckPolicyRequest,
    ) -> Result<CheckPolicyResponse, SessionError> {
        let origin = Connection::origin();
        let mut client = PolicyVerifierClient::with_origin(self.connection(), origin);
        match client.check_policy(request).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(self.failure(status)),
        }
    }
}
