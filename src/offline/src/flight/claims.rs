//! What a message of an uploaded table claims to have, held against what came, before Arrow believes it: Arrow's
//! reader takes buffers that are not there for a bug (it panics), and makes room for whatever length compressed
//! ones say they have. Knows no call and no table.
//!
//! Source: <https://arrow.apache.org/docs/format/Columnar.html#recordbatch-message>.

use arrow::ipc::{RecordBatch, root_as_message};
use arrow_flight::FlightData;
use model::{Error, Result};

/// Before the bytes of a compressed buffer stands how many there will be.
const PREFIX: usize = 8;

/// The bytes that a message takes beside its own when it is unpacked.
///
/// Errors: claims that its bytes do not bear out.
pub(super) fn check(message: &FlightData) -> Result<usize> {
    let header = root_as_message(&message.data_header)
        .map_err(|e| Error::invalid(format!("the uploaded table cannot be read: its message has no header: {e}")))?;
    let batch = header.header_as_record_batch().or_else(|| header.header_as_dictionary_batch()?.data());
    batch.map_or(Ok(0), |batch| unpacked(batch, &message.data_body))
}

fn unpacked(batch: RecordBatch<'_>, body: &[u8]) -> Result<usize> {
    let refuse = |what: &str| Err(Error::invalid(format!("the uploaded table cannot be read: {what}: send it again")));
    let nodes = || batch.nodes().into_iter().flatten();
    if batch.length() < 0 || nodes().any(|node| node.length() < 0 || node.null_count() < 0) {
        return refuse("it says that it has fewer rows than none");
    }
    let mut bytes = 0_usize;
    for buffer in batch.buffers().into_iter().flatten() {
        let (Ok(start), Ok(length)) = (usize::try_from(buffer.offset()), usize::try_from(buffer.length())) else {
            return refuse("a buffer of it has a negative place");
        };
        let Some(stored) = start.checked_add(length).and_then(|end| body.get(start..end)) else {
            return refuse("its message is cut short, or says that it is longer than it is");
        };
        if batch.compression().is_none() || stored.is_empty() {
            continue;
        }
        let Some(claimed) = stored.first_chunk::<PREFIX>() else {
            return refuse("a compressed buffer of it does not say how long it is");
        };
        // -1: this one is not compressed.
        let claimed = i64::from_le_bytes(*claimed).max(0);
        bytes = bytes.saturating_add(usize::try_from(claimed).unwrap_or(usize::MAX));
    }
    Ok(bytes)
}
