//! Reading a request's body: all of it, bounded in size and in time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};

use super::problem::Problem;

/// Largest body handed to a component, in bytes: what one message may carry.
/// Components draw their own line below it (the sample at 256 KiB).
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How much of a body that is too large is read and thrown away, in bytes, so
/// that its sender gets to read the answer instead of a broken connection.
const DISCARD_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The whole body, or the answer to give instead.
pub async fn read(body: Incoming, timeout: Duration) -> Result<Bytes, Problem> {
    match tokio::time::timeout(timeout, read_all(body)).await {
        Ok(read) => read,
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request's body did not arrive within {timeout:?}"),
        )),
    }
}

async fn read_all(mut body: Incoming) -> Result<Bytes, Problem> {
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        discard(&mut body).await;
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    while let Some(data) = next_data(&mut body).await? {
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        if whole.len() + data.len() > BODY_BYTES_MAX {
            discard(&mut body).await;
            return Err(too_large());
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// The next piece of data, or none at the end. Trailers are skipped.
async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>, Problem> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                format!("the request's body cannot be read: {error}"),
            )
        })?;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

async fn discard(body: &mut Incoming) {
    if body.size_hint().lower() > DISCARD_BYTES_MAX {
        return;
    }
    let mut left = DISCARD_BYTES_MAX;
    while let Ok(Some(data)) = next_data(body).await {
        left = left.saturating_sub(data.len() as u64);
        if left == 0 {
            return;
        }
    }
}

fn too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the request's body is larger than the {BODY_BYTES_MAX} bytes this host takes"),
    )
}
