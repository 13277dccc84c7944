//! Bodies in JSON.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;

use crate::control::error::ErrorKind;
use crate::control::parameters::invalid;
use crate::control::response::{AdminResponse, Content};

/// Reads a JSON object. Unknown and repeated keys are errors.
///
/// # Errors
/// A 400 response if the body is not JSON, a 422 response if it is not what was expected.
pub(crate) fn object<T: DeserializeOwned>(body: &[u8]) -> Result<T, AdminResponse> {
    if body.trim_ascii().is_empty() {
        return Err(AdminResponse::error(ErrorKind::BadRequest, "the body is empty; send a JSON object"));
    }
    serde_json::from_slice(body).map(|Object(object)| object).map_err(|error| match error.classify() {
        Category::Data => invalid(format_args!("the body is not as expected: {error}")),
        Category::Syntax | Category::Eof | Category::Io => {
            AdminResponse::error(ErrorKind::BadRequest, format_args!("the body is not JSON: {error}"))
        }
    })
}

/// Reads a JSON object that may contain a secret; `expected` replaces messages that could repeat a part of it.
///
/// # Errors
/// As [`object`].
pub(crate) fn confidential<T: DeserializeOwned>(body: &[u8], expected: &str) -> Result<T, AdminResponse> {
    object(body).map_err(|error| match error.content {
        Content::Error { kind: ErrorKind::Unprocessable, .. } => invalid(expected),
        _ => error,
    })
}

/// The value of a key that is present, also if it is `null`.
///
/// # Errors
/// If the value has another type.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A text, checked for a NUL, which no value may contain.
///
/// # Errors
/// If the value is not a text, or contains a NUL.
pub(crate) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.contains('\0') { Err(D::Error::custom("a text must not contain NUL")) } else { Ok(text) }
}

/// A list of at most `MAX` objects. More are not read, so that a body of tiny elements needs little memory.
///
/// # Errors
/// If the value is not such a list.
pub(crate) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MAX: usize>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(List::<T, MAX>(PhantomData))
}

struct List<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(Object(element)) = elements.next_element()? {
            if list.len() >= MAX {
                return Err(A::Error::invalid_length(list.len().saturating_add(1), &self));
            }
            list.push(element);
        }
        Ok(list)
    }
}

/// A value that is written as an object. serde also reads a list as the fields of a type in their order, which is a mistake
/// of the client here.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(entries)).map(Object)
    }
}
