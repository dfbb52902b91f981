// SPDX-License-Identifier: BSD-2-Clause
//! What files hold: 8-byte words that a seed, a file and an offset give, so that
//! a client knows every byte without reading the file a second time.
//!
//! The words of a file are an arithmetic sequence with an odd step. It costs
//! one addition a word, no word comes twice in a file, and a word of another
//! file or of another place differs in nearly every byte.

/// Odd, with bits all over: the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What one file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    first: u64,
}

/// A byte that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Its offset in the file.
    pub offset: u64,
    /// What should be there.
    pub want: u8,
    /// What has come.
    pub got: u8,
}

impl Content {
    /// Of the file with this number, for this seed.
    pub fn new(seed: u64, file: u32) -> Self {
        // splitmix64's finish: neighbouring files and seeds have nothing in common.
        let mut z = (seed ^ u64::from(file).wrapping_mul(0xd134_2543_de82_ef95)).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self { first: z ^ (z >> 31) }
    }

    fn word(self, index: u64) -> u64 {
        self.first.wrapping_add(index.wrapping_mul(STEP))
    }

    /// The byte at `offset`.
    pub fn byte(self, offset: u64) -> u8 {
        self.word(offset / 8).to_le_bytes()[(offset % 8) as usize]
    }

    /// Fill `bytes` with what is at `offset`.
    pub fn fill(self, offset: u64, bytes: &mut [u8]) {
        let head = head(offset, bytes.len());
        for (at, byte) in (offset..).zip(&mut bytes[..head]) {
            *byte = self.byte(at);
        }
        let offset = offset + head as u64;
        let (words, tail) = bytes[head..].as_chunks_mut::<8>();
        let mut next = self.word(offset / 8);
        for word in words.iter_mut() {
            *word = next.to_le_bytes();
            next = next.wrapping_add(STEP);
        }
        let offset = offset + words.len() as u64 * 8;
        for (at, byte) in (offset..).zip(tail) {
            *byte = self.byte(at);
        }
    }

    /// Whether `bytes` are what is at `offset`.
    pub fn check(self, offset: u64, bytes: &[u8]) -> Result<(), Wrong> {
        let head = head(offset, bytes.len());
        let (words, _) = bytes[head..].as_chunks::<8>();
        let mut next = self.word((offset + head as u64) / 8);
        // No branch in the loop: the place of a difference is looked for below.
        let mut differ = 0;
        for word in words {
            differ |= u64::from_le_bytes(*word) ^ next;
            next = next.wrapping_add(STEP);
        }
        let ends = if differ == 0 {
            [0..head, head + words.len() * 8..bytes.len()]
        } else {
            [0..bytes.len(), 0..0]
        };
        for i in ends.into_iter().flatten() {
            let (at, got) = (offset + i as u64, bytes[i]);
            let want = self.byte(at);
            if want != got {
                return Err(Wrong { offset: at, want, got });
            }
        }
        Ok(())
    }
}

/// Bytes up to the next word.
fn head(offset: u64, len: usize) -> usize {
    (offset.next_multiple_of(8) - offset).min(len as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fill_agrees_with_byte_at_every_alignment() {
        let content = Content::new(7, 3);
        for offset in (1u64 << 41)..(1u64 << 41) + 9 {
            for len in 0..40 {
                let mut bytes = vec![0; len];
                content.fill(offset, &mut bytes);
                for (i, byte) in bytes.iter().enumerate() {
                    assert_eq!(*byte, content.byte(offset + i as u64));
                }
                assert_eq!(content.check(offset, &bytes), Ok(()));
            }
        }
    }

    #[test]
    fn any_wrong_byte_is_found_where_it_is() {
        let content = Content::new(1, 1);
        for i in 0..37 {
            let mut bytes = vec![0; 37];
            content.fill(5, &mut bytes);
            bytes[i] ^= 0x40;
            let wrong = content.check(5, &bytes).unwrap_err();
            assert_eq!(wrong.offset, 5 + i as u64);
            assert_eq!(wrong.want ^ wrong.got, 0x40);
        }
    }

    #[test]
    fn another_place_file_or_seed_is_wrong() {
        let mut page = vec![0; 4096];
        Content::new(1, 1).fill(8192, &mut page);
        assert!(Content::new(1, 1).check(4096, &page).is_err());
        assert!(Content::new(1, 2).check(8192, &page).is_err());
        assert!(Content::new(2, 1).check(8192, &page).is_err());
        assert!(Content::new(1, 1).check(8192, &[0; 4096]).is_err());
        assert_eq!(Content::new(1, 1).check(8192, &page), Ok(()));
    }
}
