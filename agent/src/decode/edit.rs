//! Changes to a head in the memory in which it was received: fields are cut, one can be put in. What follows the head is not moved.

use std::ops::Range;

/// Cuts `cuts` (ascending, apart, relative to `head.start`) out of the head at `head`. What precedes a cut moves up, so the head's end
/// stays where it is; returns its new start.
pub fn cut(memory: &mut [u8], head: Range<usize>, cuts: &[(usize, usize)]) -> usize {
    let (mut from, mut to) = (head.end, head.end);
    for &(start, end) in cuts.iter().rev() {
        to = move_up(memory, head.start + end..from, to);
        from = head.start + start;
    }
    move_up(memory, head.start..from, to)
}

/// Moves a range so that it ends at `to`; returns its new start.
fn move_up(memory: &mut [u8], range: Range<usize>, to: usize) -> usize {
    let start = to - range.len();
    if start != range.start {
        memory.copy_within(range, start);
    }
    start
}

/// Puts `line` behind the start line of the head at `start`, moving only the start line, by as many bytes to the front; returns the
/// head's new start. `None`, and nothing changed, when there is no room in front.
pub fn insert_field(memory: &mut [u8], start: usize, start_line_bytes: usize, line: &[u8]) -> Option<usize> {
    let moved = start.checked_sub(line.len())?;
    memory.copy_within(start..start + start_line_bytes, moved);
    memory[moved + start_line_bytes..][..line.len()].copy_from_slice(line);
    Some(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"GET / HTTP/1.1\r\na: 1\r\nbb: 2\r\nccc: 3\r\n\r\nbody";

    fn edited(cuts: &[(usize, usize)]) -> String {
        let mut memory = [b"....", HEAD].concat();
        let start = cut(&mut memory, 4..4 + HEAD.len() - 4, cuts);
        String::from_utf8(memory[start..].to_vec()).unwrap()
    }

    #[test]
    fn cut_fields_are_gone_and_the_rest_is_in_order() {
        assert_eq!(edited(&[]).as_bytes(), HEAD);
        assert_eq!(edited(&[(16, 22)]), "GET / HTTP/1.1\r\nbb: 2\r\nccc: 3\r\n\r\nbody");
        assert_eq!(edited(&[(16, 22), (29, 37)]), "GET / HTTP/1.1\r\nbb: 2\r\n\r\nbody");
        assert_eq!(edited(&[(4, 5), (16, 37)]), "GET  HTTP/1.1\r\n\r\nbody");
    }

    #[test]
    fn a_field_goes_in_behind_the_start_line() {
        let mut memory = [b"..........", HEAD].concat();
        let start = insert_field(&mut memory, 10, 16, b"x: yz\r\n").unwrap();
        assert_eq!(&memory[start..][..30], b"GET / HTTP/1.1\r\nx: yz\r\na: 1\r\nb");
    }

    #[test]
    fn without_room_nothing_changes() {
        let mut memory = [b"..", HEAD].concat();
        let before = memory.clone();
        assert_eq!(insert_field(&mut memory, 2, 16, b"x: yz\r\n"), None);
        assert_eq!(memory, before);
    }
}
