//! What both variants of the protocol have in common, for who moves their messages.

use outrigger_proto::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    },
};
use tonic::Status;

use super::{DeltaStream, Rejected, SotwStream, View};
use crate::translate::ResourceType;

/// One stream of one variant: requests and worlds in, answers out.
pub(super) trait Protocol: Default + Send + 'static {
    /// What proxies send.
    type Request: Send;
    /// What they are sent.
    type Answer: Send;

    /// Takes out who the proxy says it is; only the first request needs to say.
    fn node(request: &mut Self::Request) -> Option<Node>;

    /// Type and reason, if the request refuses an answer.
    fn refusal(request: &Self::Request) -> Option<(&str, &str)>;

    /// The type URL of an answer.
    fn type_of(answer: &Self::Answer) -> &str;

    /// Takes a request in. What has to be answered at once, because it is of a type that is not
    /// served, is answered.
    fn take(&mut self, request: Self::Request) -> Result<Option<Self::Answer>, Status>;

    /// Everything that the proxy does not have yet.
    fn push(&mut self, view: &impl View) -> Vec<Self::Answer>;

    /// The world that was last pushed.
    fn looked_at(&self) -> u64;

    /// Every answer up to the world of this revision has been taken or refused.
    fn settled(&self) -> u64;

    /// What the proxy refused and has not taken since.
    fn rejected(&self) -> Vec<(ResourceType, Rejected)>;

    /// What the proxy has: type, name and version.
    fn held(&self) -> Vec<(ResourceType, String, String)>;
}

/// The part that is the same for both.
macro_rules! shared {
    () => {
        fn push(&mut self, view: &impl View) -> Vec<Self::Answer> {
            self.push(view)
        }

        fn looked_at(&self) -> u64 {
            self.looked_at()
        }

        fn settled(&self) -> u64 {
            self.settled()
        }

        fn rejected(&self) -> Vec<(ResourceType, Rejected)> {
            self.rejected().map(|(kind, r)| (kind, r.clone())).collect()
        }

        fn held(&self) -> Vec<(ResourceType, String, String)> {
            let held = self.held();
            held.map(|(k, n, v)| (k, n.to_owned(), v.to_owned()))
                .collect()
        }

        fn node(request: &mut Self::Request) -> Option<Node> {
            request.node.take()
        }

        fn type_of(answer: &Self::Answer) -> &str {
            &answer.type_url
        }

        fn refusal(request: &Self::Request) -> Option<(&str, &str)> {
            let error = request.error_detail.as_ref()?;
            Some((&request.type_url, &error.message))
        }
    };
}

impl Protocol for DeltaStream {
    type Request = DeltaDiscoveryRequest;
    type Answer = DeltaDiscoveryResponse;

    shared!();

    fn take(&mut self, request: Self::Request) -> Result<Option<Self::Answer>, Status> {
        if let Some(kind) = ResourceType::of(&request.type_url) {
            self.request(kind, request)?;
            return Ok(None);
        }
        // There is nothing of this type, and who asks must not wait for it.
        let removed = request.resource_names_subscribe;
        Ok((!removed.is_empty()).then(|| DeltaDiscoveryResponse {
            type_url: request.type_url,
            nonce: "0".to_owned(),
            removed_resources: removed,
            ..DeltaDiscoveryResponse::default()
        }))
    }
}

impl Protocol for SotwStream {
    type Request = DiscoveryRequest;
    type Answer = DiscoveryResponse;

    shared!();

    /// There is no way to say that there is nothing of a type: who asks waits, as with any server.
    fn take(&mut self, request: Self::Request) -> Result<Option<Self::Answer>, Status> {
        if let Some(kind) = ResourceType::of(&request.type_url) {
            self.request(kind, request)?;
        }
        Ok(None)
    }
}
