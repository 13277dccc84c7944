//! Single requests to the API server, and what their refusals mean.

use std::sync::Arc;

use kube::api::{DeleteParams, GetParams, PostParams};
use kube::core::Request;
use kube::core::params::Preconditions;

use crate::agent::kubernetes::connection::Connection;
use crate::agent::kubernetes::failure::{Failure, FailureKind};
use crate::agent::store::kubernetes::object::Object;

/// The objects of one kind in one namespace.
pub(super) struct Requests {
    pub(super) connection: Arc<Connection>,
    pub(super) path: String,
}

/// What became of a write.
#[derive(Debug)]
pub(super) enum Written {
    Done(Box<Object>),
    /// Somebody else has written the object meanwhile.
    Outrun,
}

impl Requests {
    /// The object with this name.
    pub(super) async fn get(&self, name: &str) -> Result<Option<Object>, Failure> {
        let request = Request::new(self.path.clone()).get(name, &GetParams::default()).map_err(Failure::invalid)?;
        match self.text(request).await {
            Ok(text) => parse(&text).map(Some),
            Err(failure) if failure.code == Some(404) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    pub(super) async fn create(&self, object: &Object) -> Result<Written, Failure> {
        let body = serde_json::to_vec(object).map_err(Failure::invalid)?;
        let parameters = PostParams::default();
        let request = Request::new(self.path.clone()).create(&parameters, body).map_err(Failure::invalid)?;
        self.written(request).await
    }

    /// Replaces an object, if it still has the version that is in this one.
    pub(super) async fn replace(&self, object: &Object) -> Result<Written, Failure> {
        let body = serde_json::to_vec(object).map_err(Failure::invalid)?;
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let parameters = PostParams::default();
        let request = Request::new(self.path.clone()).replace(name, &parameters, body).map_err(Failure::invalid)?;
        self.written(request).await
    }

    /// Removes an object, if it is still this one.
    pub(super) async fn delete(&self, object: &Object) -> Result<Written, Failure> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let preconditions = Preconditions {
            resource_version: object.metadata.resource_version.clone(),
            uid: object.metadata.uid.clone(),
        };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let request = Request::new(self.path.clone()).delete(name, &parameters).map_err(Failure::invalid)?;
        match self.text(request).await {
            Ok(_) => Ok(Written::Done(Box::new(object.clone()))),
            Err(failure) => outrun(failure),
        }
    }

    async fn written(&self, request: hyper::Request<Vec<u8>>) -> Result<Written, Failure> {
        match self.text(request).await {
            Ok(text) => Ok(Written::Done(Box::new(parse(&text)?))),
            Err(failure) => outrun(failure),
        }
    }

    /// Sends a request, again with other credentials if these are no longer valid.
    async fn text(&self, request: hyper::Request<Vec<u8>>) -> Result<String, Failure> {
        let (parts, body) = request.into_parts();
        let mut has_renewed = false;
        loop {
            let connected = self.connection.client().await?;
            let request = hyper::Request::from_parts(parts.clone(), body.clone());
            let failure = match self.connection.within_timeout(connected.client.request_text(request)).await {
                Ok(text) => return Ok(text),
                Err(failure) => failure,
            };
            let is_rejected = failure.kind == FailureKind::Unauthorized && !has_renewed;
            if !is_rejected || !self.connection.renew(connected.generation).await {
                return Err(failure);
            }
            has_renewed = true;
        }
    }
}

/// 409 is a name or a version that another writer has used, 404 an object that another writer has removed.
fn outrun(failure: Failure) -> Result<Written, Failure> {
    match failure.code {
        Some(404 | 409) => Ok(Written::Outrun),
        _ => Err(failure),
    }
}

fn parse(text: &str) -> Result<Object, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::invalid(format_args!("the answer is not valid: {error}")))
}
