//! The columns of a function's input and output as Arrow IPC file bytes. Scalars, and lists of them,
//! go as the Arrow types that pyarrow would make of the Python values Feast hands to functions; what
//! Arrow has no one way for goes to our own workers as serialized `feast.types.Value`s.
//!
//! Source: `OnlineResponse.to_arrow` in `feast/online_response.py`.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, RecordBatchOptions};
use arrow::buffer::Buffer;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::{FileDecoder, read_footer_length};
use arrow::ipc::writer::FileWriter;
use arrow::ipc::{Block, root_as_footer};
use bytes::Bytes;
use model::ports::{NamedColumn, TypedColumn};
use model::value::{NULL, coerce, element_type, is_null};
use model::{Error, Kind, Result, Value, ValueType};
use prost::Message;

use crate::convert::{arrow_type, from_values, to_values, utc_micros};
use crate::error::arrow as arrow_error;

/// Marks a binary column of serialized values.
const AS_VALUES: &str = "larder.value";

/// The columns as a table. `as_values` is for our own workers: others get the Arrow types of
/// [`arrow_type`] for everything.
pub(super) fn to_batch(columns: &[TypedColumn], rows: usize, as_values: bool) -> Result<RecordBatch> {
    let (mut fields, mut arrays) = (Vec::with_capacity(columns.len()), Vec::with_capacity(columns.len()));
    for column in columns {
        let wire = wire_type(column.value_type);
        let (field, array) = match wire {
            None if as_values => {
                let marked = HashMap::from([(AS_VALUES.to_owned(), "1".to_owned())]);
                (Field::new(&column.name, DataType::Binary, true).with_metadata(marked), serialized(&column.values))
            }
            wire => {
                let wire = wire.unwrap_or_else(|| arrow_type(column.value_type, None));
                (Field::new(&column.name, wire.clone(), true), from_values(&column.values, &wire)?)
            }
        };
        fields.push(field);
        arrays.push(array);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options).map_err(arrow_error)
}

/// What pyarrow makes of the Python values of a type: integers and floats are 64 bits wide.
fn wire_type(value_type: ValueType) -> Option<DataType> {
    use ValueType as T;
    Some(match value_type {
        T::Int32 | T::Int64 => DataType::Int64,
        T::Float | T::Double => DataType::Float64,
        T::Bool => DataType::Boolean,
        T::String => DataType::Utf8,
        T::Bytes => DataType::Binary,
        T::UnixTimestamp => utc_micros(),
        T::Invalid | T::Null => DataType::Null,
        T::BytesList
        | T::StringList
        | T::Int32List
        | T::Int64List
        | T::DoubleList
        | T::FloatList
        | T::BoolList
        | T::UnixTimestampList => {
            let element = wire_type(element_type(value_type)?)?;
            DataType::List(Arc::new(Field::new("item", element, true)))
        }
        _ => return None,
    })
}

fn serialized(values: &[Value]) -> ArrayRef {
    Arc::new(values.iter().map(|v| (!is_null(v)).then(|| v.encode_to_vec())).collect::<BinaryArray>())
}

/// A table as the bytes of an Arrow IPC file.
pub(super) fn encode(batch: &RecordBatch) -> Result<Vec<u8>> {
    let mut writer = FileWriter::try_new(Vec::new(), batch.schema_ref()).map_err(arrow_error)?;
    writer.write(batch).map_err(arrow_error)?;
    writer.into_inner().map_err(arrow_error)
}

/// The bytes of an Arrow IPC file as one table.
///
/// Errors: bytes that are none.
pub(super) fn decode(bytes: Bytes) -> Result<RecordBatch> {
    let bytes = Buffer::from(bytes);
    let read = || read_file(&bytes);
    let no_table = "the transformation server answered with no Arrow table";
    // arrow checks most of what it reads, but panics over buffers that are shorter than their columns
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(|e| Error::internal(no_table, e)),
        Err(_) => Err(Error::new(Kind::Internal, no_table)),
    }
}

/// Reads by the file's own footer, within the bytes: arrow's `FileReader` takes as much memory as the
/// footer says, and ends the process where there is not so much.
fn read_file(bytes: &Buffer) -> std::result::Result<RecordBatch, ArrowError> {
    let broken = |what: &str| ArrowError::IpcError(what.to_owned());
    let (before, trailer) = bytes.split_last_chunk::<10>().ok_or_else(|| broken("it has no trailer"))?;
    let start = before.len().checked_sub(read_footer_length(*trailer)?).ok_or_else(|| broken("its footer is short"))?;
    let footer = root_as_footer(&before[start..]).map_err(|e| broken(&e.to_string()))?;
    let schema = Arc::new(fb_to_schema(footer.schema().ok_or_else(|| broken("it has no schema"))?));
    let part = |block: &Block| {
        let offset = usize::try_from(block.offset()).ok();
        let length = usize::try_from(block.bodyLength()).ok().zip(usize::try_from(block.metaDataLength()).ok());
        let found = offset.zip(length.and_then(|(body, metadata)| body.checked_add(metadata)));
        let inside = found.filter(|(offset, length)| offset.checked_add(*length).is_some_and(|end| end <= bytes.len()));
        let (offset, length) = inside.ok_or_else(|| broken("a block is outside of the file"))?;
        Ok::<_, ArrowError>(bytes.slice_with_length(offset, length))
    };
    let mut decoder = FileDecoder::new(schema.clone(), footer.version());
    for block in footer.dictionaries().iter().flatten() {
        decoder.read_dictionary(block, &part(block)?)?;
    }
    let mut batches = Vec::new();
    for block in footer.recordBatches().iter().flatten() {
        batches.extend(decoder.read_record_batch(block, &part(block)?)?);
    }
    concat_batches(&schema, &batches)
}

/// The columns that are features (by their own name, or with the view's before it) or keys, in their
/// registered types.
///
/// Errors: a value that does not fit its registered type without loss.
pub(super) fn from_batch(batch: &RecordBatch, view: &str, types: &[(String, ValueType)]) -> Result<Vec<NamedColumn>> {
    let mut out = Vec::with_capacity(types.len());
    for (name, value_type) in types {
        let full = format!("{view}__{name}");
        let schema = batch.schema_ref();
        let Some(at) = schema.index_of(name).or_else(|_| schema.index_of(&full)).ok() else { continue };
        let misfit = |e: &Error| {
            let given = schema.field(at).data_type();
            let given =
                if is_values(schema.field(at)) { String::new() } else { format!(" (its function gave {given})") };
            let wanted = value_type.as_str_name();
            Error::of_class(
                e.kind(),
                e.class(),
                format!("the feature '{name}' is registered as {wanted}{given}: {}", e.message()),
            )
        };
        let values = if is_values(schema.field(at)) {
            deserialized(batch.column(at), *value_type)
        } else {
            to_values(batch.column(at), *value_type)
        };
        out.push(NamedColumn { name: name.clone(), values: values.map_err(|e| misfit(&e))? });
    }
    Ok(out)
}

fn is_values(field: &Field) -> bool {
    field.metadata().contains_key(AS_VALUES)
}

fn deserialized(array: &ArrayRef, value_type: ValueType) -> Result<Vec<Value>> {
    let Some(array) = array.as_binary_opt::<i32>() else {
        return Err(Error::invalid("the column is marked as values and is not binary"));
    };
    (0..array.len())
        .map(|row| {
            if array.is_null(row) {
                return Ok(NULL);
            }
            let value = Value::decode(array.value(row))
                .map_err(|e| Error::invalid(format!("the column holds no feast.types.Value: {e}")))?;
            coerce(value, value_type)
        })
        .collect()
}

#[cfg(test)]
mod tests;
