//! Errors as statuses with `google.rpc` details.

use std::collections::HashMap;
use std::time::Duration;

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use crate::api::record::Record;
use crate::error::ApiError;

/// Who gives the reasons of `ErrorInfo`.
const DOMAIN: &str = "penstock";

/// The status of a request that fails with this error; the log shows the status of the native routes.
pub(super) fn fail(record: &mut Record, error: &ApiError) -> Status {
    record.failed(error, error.kind.codes().status.as_u16());
    status(error)
}

/// `BadRequest` names the field, `RetryInfo` says when to try again, and `ErrorInfo` what kind of error it is.
pub(super) fn status(error: &ApiError) -> Status {
    let mut details = ErrorDetails::new();
    let reason = error.kind.codes().openai_code.to_uppercase();
    details.set_error_info(reason, DOMAIN, HashMap::new());
    if let Some(field) = &error.param {
        details.add_bad_request_violation(field, &error.message);
    }
    if let Some(seconds) = error.retry_after {
        details.set_retry_info(Some(Duration::from_secs(seconds.into())));
    }
    Status::with_error_details(error.kind.grpc_code(), &error.message, details)
}
