// SPDX-License-Identifier: MIT
#include "tokenizer.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <queue>
#include <tuple>

namespace engine {
namespace {

// White_Space of the Unicode character database. PCRE's own \s has U+180E as well, the tokenizers'
// engines do not.
#define SPACES \
  R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})"
#define SPACE "[" SPACES "]"
#define NOT_SPACE "[^" SPACES "]"

// GPT-2's encoder.py. Possessive where nothing is given back, which keeps long runs linear.
constexpr const char* gpt2_words =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}++| ?\p{N}++| ?[^\p{L}\p{N})" SPACES "]++|" SPACE
    "+(?!" NOT_SPACE ")|" SPACE "+";

// Llama 3's tokenizer.
constexpr const char* llama3_words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}++|\p{N}{1,3}+| ?[^\p{L}\p{N})" SPACES
    R"(]++[\r\n]*+|)" SPACE R"(*[\r\n]+|)" SPACE "+(?!" NOT_SPACE ")|" SPACE "+";

// The length of the UTF-8 character at the front (RFC 3629: no overlong forms, no surrogates), 0 if
// it is not valid.
std::size_t character_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto continues = [&](std::size_t i, unsigned low = 0x80, unsigned high = 0xbf) {
    return i < text.size() && byte(i) >= low && byte(i) <= high;
  };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return continues(1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    const bool second = continues(1, first == 0xe0 ? 0xa0 : 0x80, first == 0xed ? 0x9f : 0xbf);
    return second && continues(2) ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    const bool second = continues(1, first == 0xf0 ? 0x90 : 0x80, first == 0xf4 ? 0x8f : 0xbf);
    return second && continues(2) && continues(3) ? 4 : 0;
  }
  return 0;
}

// The printable stand-ins of GPT-2's bytes_to_unicode(): bytes that print stand for themselves, the
// others for U+0100 on.
std::unordered_map<std::string, unsigned char> stand_ins() {
  std::unordered_map<std::string, unsigned char> out;
  unsigned next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool prints =
        (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    const unsigned code = prints ? byte : next++;
    std::string character;
    if (code < 0x80) {
      character.push_back(static_cast<char>(code));
    } else {
      character.push_back(static_cast<char>(0xc0 | (code >> 6)));
      character.push_back(static_cast<char>(0x80 | (code & 0x3f)));
    }
    out.emplace(character, static_cast<unsigned char>(byte));
  }
  return out;
}

}  // namespace

// A compiled regular expression of the PCRE2 library.
struct Tokenizer::Expression {
  explicit Expression(const char* pattern) {
    int error = 0;
    PCRE2_SIZE at = 0;
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                         PCRE2_UTF | PCRE2_UCP, &error, &at, nullptr);
    if (!code)
      throw Error("tokenizer: PCRE2 refuses the expression at character " + std::to_string(at));
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without it, matching is merely slower
  }
  Expression(const Expression&) = delete;
  Expression& operator=(const Expression&) = delete;
  ~Expression() { pcre2_code_free(code); }

  pcre2_code* code = nullptr;
};

namespace {

// Finds matches in one text; one per call of encode(), because match data is not shared between
// threads.
class Matcher {
 public:
  explicit Matcher(pcre2_code* code) : code_(code), data_(pcre2_match_data_create(1, nullptr)) {
    if (!data_) throw std::bad_alloc();
  }
  Matcher(const Matcher&) = delete;
  Matcher& operator=(const Matcher&) = delete;
  ~Matcher() { pcre2_match_data_free(data_); }

  // The end of the match that starts at `at`, or `at` if there is none.
  std::size_t match(std::string_view text, std::size_t at) {
    const int count = pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                  PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK, data_, nullptr);
    if (count == PCRE2_ERROR_NOMATCH) return at;
    if (count < 0) throw Error("tokenizer: PCRE2 error " + std::to_string(count));
    return pcre2_get_ovector_pointer(data_)[1];
  }

 private:
  pcre2_code* code_;
  pcre2_match_data* data_;
};

}  // namespace

Tokenizer::Tokenizer(const Gguf& file) {
  const std::string_view model = file.string("tokenizer.ggml.model");
  if (model != "gpt2")
    throw Error("gguf: tokenizer.ggml.model is '" + std::string(model) +
                "'; this engine reads byte-level BPE, 'gpt2'");
  const std::string_view pre = file.string("tokenizer.ggml.pre", "gpt-2");
  if (pre == "smollm" || pre == "gpt-2") {
    digits_alone_ = pre == "smollm";
    words_ = std::make_unique<Expression>(gpt2_words);
  } else if (pre == "llama-bpe") {
    whole_words_first_ = true;
    words_ = std::make_unique<Expression>(llama3_words);
  } else {
    throw Error("gguf: tokenizer.ggml.pre '" + std::string(pre) +
                "' is not supported (smollm, gpt-2 and llama-bpe are)");
  }
  read_vocabulary(file);
  read_merges(file);
  const auto id = [&](const char* key) {
    if (!file.has(key)) return std::int32_t{-1};
    const std::uint64_t value = file.unsigned_number(key);
    if (value >= bytes_of_.size())
      throw Error("gguf: metadata '" + std::string(key) + "' is outside the vocabulary");
    return static_cast<std::int32_t>(value);
  };
  begin_id_ = id("tokenizer.ggml.bos_token_id");
  end_id_ = id("tokenizer.ggml.eos_token_id");
  adds_begin_ = file.boolean("tokenizer.ggml.add_bos_token", false) && begin_id_ >= 0;
}

Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

void Tokenizer::read_vocabulary(const Gguf& file) {
  constexpr std::int64_t unknown = 2, control = 3, user_defined = 4;  // llama_token_type
  const auto tokens = file.strings("tokenizer.ggml.tokens");
  std::vector<std::int64_t> types;
  if (file.has("tokenizer.ggml.token_type")) types = file.integers("tokenizer.ggml.token_type");
  if (tokens.empty() || tokens.size() > (1u << 28))
    throw Error("gguf: tokenizer.ggml.tokens has an impossible length");
  if (!types.empty() && types.size() != tokens.size())
    throw Error("gguf: tokenizer.ggml.token_type and tokenizer.ggml.tokens differ in length");

  const auto bytes = stand_ins();
  byte_id_.fill(-1);
  bytes_of_.reserve(tokens.size());  // id_of_ points into the strings, so they must not move
  special_.assign(tokens.size(), false);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    const std::string_view token = tokens[i];
    const std::int64_t type = types.empty() ? 1 : types[i];
    special_[i] = type == unknown || type == control || type == user_defined;
    std::string plain;
    bool standing = !special_[i];
    for (std::size_t at = 0; at < token.size() && standing;) {
      const std::size_t length = character_length(token.substr(at));
      const auto found =
          length == 0 ? bytes.end() : bytes.find(std::string(token.substr(at, length)));
      standing = found != bytes.end();
      if (standing) plain.push_back(static_cast<char>(found->second));
      at += length;
    }
    bytes_of_.push_back(standing ? std::move(plain) : std::string(token));
    const std::string& text = bytes_of_.back();
    if (special_[i] && !text.empty())
      special_by_first_byte_[static_cast<unsigned char>(text[0])].push_back(id);
    if (!standing) continue;
    id_of_.emplace(text, id);
    if (text.size() == 1) byte_id_[static_cast<unsigned char>(text[0])] = id;
  }
  for (auto& ids : special_by_first_byte_)
    std::stable_sort(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) {
      return bytes_of_[static_cast<std::size_t>(a)].size() >
             bytes_of_[static_cast<std::size_t>(b)].size();
    });
}

void Tokenizer::read_merges(const Gguf& file) {
  const auto lines = file.strings("tokenizer.ggml.merges");
  const auto bytes = stand_ins();
  // The id of a part written in stand-ins; -1 if it is no token, so that the merge can never
  // happen.
  const auto id_of = [&](std::string_view part) {
    std::string plain;
    for (std::size_t at = 0; at < part.size();) {
      const std::size_t length = character_length(part.substr(at));
      const auto found =
          length == 0 ? bytes.end() : bytes.find(std::string(part.substr(at, length)));
      if (found == bytes.end()) return std::int32_t{-1};
      plain.push_back(static_cast<char>(found->second));
      at += length;
    }
    const auto found = id_of_.find(plain);
    return found == id_of_.end() ? std::int32_t{-1} : found->second;
  };
  merges_.reserve(lines.size());
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::size_t space = lines[i].find(' ', 1);
    if (space == std::string_view::npos)
      throw Error("gguf: tokenizer.ggml.merges entry " + std::to_string(i) + " is not a pair");
    const std::string_view left = lines[i].substr(0, space), right = lines[i].substr(space + 1);
    const std::int32_t a = id_of(left), b = id_of(right),
                       result = id_of(std::string(left) + std::string(right));
    if (a < 0 || b < 0 || result < 0) continue;
    const std::uint64_t pair =
        (static_cast<std::uint64_t>(a) << 32) | static_cast<std::uint32_t>(b);
    merges_.emplace(pair, Merge{static_cast<std::int32_t>(i), result});
  }
}

Encoding Tokenizer::encode(std::string_view text, bool parse_special) const {
  Encoding out;
  std::size_t plain = 0;  // start of the text that is not encoded yet
  for (std::size_t at = 0; parse_special && at < text.size();) {
    std::int32_t found = -1;
    for (const std::int32_t id : special_by_first_byte_[static_cast<unsigned char>(text[at])])
      if (text.substr(at).starts_with(bytes_of_[static_cast<std::size_t>(id)])) {
        found = id;
        break;
      }
    if (found < 0) {
      ++at;
      continue;
    }
    encode_plain(text.substr(plain, at - plain), out);
    out.ids.push_back(found);
    at += bytes_of_[static_cast<std::size_t>(found)].size();
    plain = at;
  }
  encode_plain(text.substr(plain), out);
  return out;
}

// Alternating stretches of valid UTF-8 and of other bytes.
void Tokenizer::encode_plain(std::string_view text, Encoding& out) const {
  while (!text.empty()) {
    std::size_t valid = 0, length = 0;
    while (valid < text.size() && (length = character_length(text.substr(valid))) > 0)
      valid += length;
    encode_words(text.substr(0, valid), out);
    std::size_t end = valid;
    while (end < text.size() && character_length(text.substr(end)) == 0) ++end;
    encode_word(text.substr(valid, end - valid), out);
    text.remove_prefix(end);
  }
}

void Tokenizer::encode_words(std::string_view utf8, Encoding& out) const {
  if (utf8.empty()) return;
  static const Expression digit(R"(\p{N})"), to_digit(R"(\P{N}++)");
  Matcher words(words_->code), digits(digit.code), others(to_digit.code);
  while (!utf8.empty()) {
    // A stretch ends where the pre-tokenizer splits; the words' lookahead must not see past it.
    std::string_view stretch = utf8;
    if (digits_alone_) {
      std::size_t end = digits.match(utf8, 0);
      if (end == 0) end = others.match(utf8, 0);
      stretch = utf8.substr(0, end);
    }
    for (std::size_t at = 0; at < stretch.size();) {
      std::size_t end = words.match(stretch, at);
      if (end == at)
        end = at + character_length(stretch.substr(at));  // nothing matches: a word of its own
      encode_word(stretch.substr(at, end - at), out);
      at = end;
    }
    utf8.remove_prefix(stretch.size());
  }
}

void Tokenizer::encode_word(std::string_view word, Encoding& out) const {
  if (whole_words_first_) {
    if (const auto whole = id_of_.find(word); whole != id_of_.end())
      return out.ids.push_back(whole->second);
  }
  // A linked list of the tokens so far, and a heap of the merges that were possible when they were
  // found.
  struct Symbol {
    std::int32_t id;
    std::int32_t previous, next;
  };
  std::vector<Symbol> symbols;
  for (const char c : word) {
    const std::int32_t id = byte_id_[static_cast<unsigned char>(c)];
    if (id < 0) {
      ++out.dropped_bytes;
      continue;
    }
    const auto at = static_cast<std::int32_t>(symbols.size());
    symbols.push_back({id, at - 1, at + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;

  struct Candidate {
    std::int32_t rank, at, left, right, result;
    bool operator>(const Candidate& other) const {
      return std::tie(rank, at) > std::tie(other.rank, other.at);
    }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto symbol = [&](std::int32_t at) -> Symbol& {
    return symbols[static_cast<std::size_t>(at)];
  };
  const auto consider = [&](std::int32_t at) {
    if (at < 0 || symbol(at).next < 0) return;
    const std::int32_t left = symbol(at).id, right = symbol(symbol(at).next).id;
    const auto found =
        merges_.find((static_cast<std::uint64_t>(left) << 32) | static_cast<std::uint32_t>(right));
    if (found != merges_.end())
      candidates.push({found->second.rank, at, left, right, found->second.result});
  };
  for (std::int32_t at = 0; symbol(at).next >= 0; ++at) consider(at);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Symbol& left = symbol(best.at);
    if (left.id != best.left || left.next < 0 || symbol(left.next).id != best.right)
      continue;  // out of date
    Symbol& right = symbol(left.next);
    left.id = best.result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbol(left.next).previous = best.at;
    consider(left.previous);
    consider(best.at);
  }
  for (std::int32_t at = 0; at >= 0; at = symbol(at).next) out.ids.push_back(symbol(at).id);
}

bool Tokenizer::is_special(std::int32_t id) const {
  return id >= 0 && static_cast<std::size_t>(id) < special_.size() &&
         special_[static_cast<std::size_t>(id)];
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string out;
  for (const std::int32_t id : ids) {
    if (id < 0 || static_cast<std::size_t>(id) >= bytes_of_.size())
      throw Error("decode: token " + std::to_string(id) + " is outside the vocabulary");
    out += bytes_of_[static_cast<std::size_t>(id)];
  }
  return out;
}

}  // namespace engine
