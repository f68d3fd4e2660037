//! JSON that keeps the order of its members: a policy that is changed stays as its owner wrote it, and one that is made begins with
//! its version. A name that stands twice in an object is an error, as it is to IAM.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
    ser::SerializeMap as _,
};
use serde_json::Number;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    Text(String),
    /// An array.
    Array(Vec<Self>),
    /// An object, in the order in which it is written.
    Object(Vec<(String, Self)>),
}

impl Json {
    /// An object of these members.
    pub fn object<K: Into<String>>(members: impl IntoIterator<Item = (K, Self)>) -> Self {
        Self::Object(members.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }

    /// One string as itself, others as an array, as policies are written.
    pub fn one_or_many<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        let mut texts = texts.into_iter().map(|text| Self::Text(text.into())).collect::<Vec<_>>();
        match (texts.pop(), texts.is_empty()) {
            (Some(only), true) => only,
            (last, _) => Self::Array(texts.into_iter().chain(last).collect()),
        }
    }

    /// The member of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        self.members()?.iter().find_map(|(key, value)| (key == name).then_some(value))
    }

    /// An object's members.
    #[must_use]
    pub fn members(&self) -> Option<&[(String, Self)]> {
        if let Self::Object(members) = self { Some(members) } else { None }
    }

    /// A string.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// A string, or the strings of an array.
    #[must_use]
    pub fn texts(&self) -> Option<Vec<&str>> {
        match self {
            Self::Text(text) => Some(vec![text]),
            Self::Array(values) => values.iter().map(Self::text).collect(),
            _ => None,
        }
    }

    /// Whether both say the same: an object's order does not count, and one string is an array of one.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Object(one), Self::Object(another)) => {
                let same = |(name, value): &(String, Self)| other.get(name).is_some_and(|it| value.says_the_same(it));
                one.len() == another.len() && one.iter().all(same)
            }
            (Self::Array(one), Self::Array(another)) => {
                one.len() == another.len() && one.iter().zip(another).all(|(one, another)| one.says_the_same(another))
            }
            (Self::Array(many), one) | (one, Self::Array(many)) => {
                matches!(many.as_slice(), [only] if only.says_the_same(one))
            }
            (one, another) => one == another,
        }
    }

    /// Lines, indented by two.
    #[must_use]
    pub fn pretty(&self) -> String {
        // A value that was read or made here has no part that cannot be written.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// On one line, without white space.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => number.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Array(values) => serializer.collect_seq(values),
            Self::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                members.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
        Number::from_f64(value).map(Json::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            values.push(value);
        }
        Ok(Json::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::<(String, Json)>::new();
        while let Some((name, value)) = map.next_entry::<String, Json>()? {
            if members.iter().any(|(other, _)| *other == name) {
                return Err(A::Error::custom(format_args!("{name:?} stands twice in one object")));
            }
            members.push((name, value));
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Json {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_read_is_written_as_it_was() {
        let text = r#"{"z":[1,-2,0.5,null,true],"a":{"b":"é\"","A":{}}}"#;
        assert_eq!(read(text).to_string(), text);
        assert_eq!(serde_json::from_str::<Json>(&read(text).pretty()).unwrap(), read(text));
    }

    #[test]
    fn a_name_that_stands_twice_is_an_error() {
        let error = serde_json::from_str::<Json>(r#"{"a":1,"b":{"c":1,"c":2}}"#).unwrap_err();
        assert!(error.to_string().starts_with("\"c\" stands twice"), "{error}");
    }

    #[test]
    fn order_of_members_and_an_array_of_one_do_not_count() {
        assert!(read(r#"{"a":"x","b":["y"]}"#).says_the_same(&read(r#"{"b":"y","a":["x"]}"#)));
        for (one, another) in [
            (r#"{"a":1}"#, r#"{"a":1,"b":1}"#),
            (r#"{"a":1,"b":1}"#, r#"{"a":1}"#),
            (r#"["x","y"]"#, r#"["y","x"]"#),
            (r#"["x","y"]"#, r#""x""#),
            (r#""x""#, r#""X""#),
        ] {
            assert!(!read(one).says_the_same(&read(another)), "{one} {another}");
        }
    }
}
