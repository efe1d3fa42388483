//! The protobuf wire format, read field by field from bytes that may be anything.

/// Groups within groups that are skipped; more is malformed. Nobody sends any.
const MAX_GROUP_DEPTH: usize = 16;

/// How a field is encoded (<https://protobuf.dev/programming-guides/encoding/#structure>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireType {
    /// Integers, booleans, enums.
    Varint,
    /// `fixed64`, `double`.
    Fixed64,
    /// Strings, bytes, messages, packed numbers.
    Length,
    /// The group of proto2.
    Group,
    /// `fixed32`, `float`.
    Fixed32,
}

/// A field as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Field<'a> {
    pub(super) number: u32,
    pub(super) value: Value<'a>,
}

/// What a field holds, as far as the wire tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed64,
    Fixed32,
    Group,
}

impl Value<'_> {
    pub(super) fn wire_type(self) -> WireType {
        match self {
            Value::Number(_) => WireType::Varint,
            Value::Bytes(_) => WireType::Length,
            Value::Fixed64 => WireType::Fixed64,
            Value::Fixed32 => WireType::Fixed32,
            Value::Group => WireType::Group,
        }
    }
}

/// The fields of one message, up to its end or to the first malformed byte.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(encoded: &'a [u8]) -> Self {
        Self { rest: encoded }
    }

    fn field(&mut self) -> Option<Field<'a>> {
        let (number, wire_type) = self.tag()?;
        let value = match wire_type {
            0 => Value::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            3 => {
                self.skip_group(number)?;
                Value::Group
            }
            5 => {
                self.take(4)?;
                Value::Fixed32
            }
            _ => return None,
        };
        Some(Field { number, value })
    }

    /// Field number and wire type.
    fn tag(&mut self) -> Option<(u32, u32)> {
        let tag = u32::try_from(self.varint()?).ok()?;
        let number = tag >> 3;
        (number != 0).then_some((number, tag & 7))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    /// Skips to the end of the group that was just opened.
    fn skip_group(&mut self, opened: u32) -> Option<()> {
        let mut open = vec![opened];
        while let Some(&innermost) = open.last() {
            let (number, wire_type) = self.tag()?;
            match wire_type {
                0 => drop(self.varint()?),
                1 => drop(self.take(8)?),
                2 => {
                    let length = usize::try_from(self.varint()?).ok()?;
                    self.take(length)?;
                }
                3 if open.len() < MAX_GROUP_DEPTH => open.push(number),
                4 if number == innermost => drop(open.pop()),
                5 => drop(self.take(4)?),
                _ => return None,
            }
        }
        Some(())
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.rest = &[];
        }
        field
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(encoded: &[u8]) -> Vec<Field<'_>> {
        Reader::new(encoded).collect()
    }

    #[test]
    fn each_wire_type_is_read_and_skipped_to_its_end() {
        let encoded = [
            0x08, 0x96, 0x01, // 1: varint 150
            0x11, 1, 2, 3, 4, 5, 6, 7, 8, // 2: fixed64
            0x1a, 0x02, b'h', b'i', // 3: bytes
            0x23, 0x08, 0x01, 0x2b, 0x2c, 0x24, // 4: group with a varint and group 5
            0x35, 1, 2, 3, 4, // 6: fixed32
            0x38, 0x01, // 7: varint
        ];
        let values: Vec<_> = read(&encoded)
            .iter()
            .map(|field| (field.number, field.value))
            .collect();
        let expected = [
            (1, Value::Number(150)),
            (2, Value::Fixed64),
            (3, Value::Bytes(b"hi")),
            (4, Value::Group),
            (6, Value::Fixed32),
            (7, Value::Number(1)),
        ];
        assert_eq!(values, expected);
    }

    #[test]
    fn malformed_input_ends_the_reading() {
        for malformed in [
            &[0x80][..],         // cut in a tag
            &[0x00, 0x01],       // field number 0
            &[0x0a, 0x05, b'x'], // cut in bytes
            &[0x0e],             // wire type 6
            &[0x0c],             // end of no group
            &[0x0b, 0x08, 0x01], // group without an end
            &[0x0b, 0x14],       // end of another group
            &[
                0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02,
            ], // over 64 bits
            &[
                0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
            ], // length 2^64-1
        ] {
            assert_eq!(read(malformed), [], "{malformed:x?}");
        }
    }

    #[test]
    fn groups_are_not_followed_without_end() {
        assert_eq!(read(&[0x0b; 100_000]), []);
    }
}
