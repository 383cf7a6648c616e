//! Known robots by their user agent: the general invalid traffic that a list finds. The list is
//! short on purpose (declared robots, HTTP libraries, headless browsers); sophisticated invalid
//! traffic is a matter of verdicts.
//!
//! An event that it marks carries the reason and the list's version, so that a later list can be
//! told apart, and whoever sent it gets the answer that anybody gets.

/// Changes with every change of the list.
pub(crate) const LIST_VERSION: &str = "2026-11-22";

/// Lower-case parts of the user agents of robots.
const PARTS: [&str; 24] = [
    "bot",
    "crawler",
    "spider",
    "slurp",
    "curl/",
    "wget/",
    "libwww",
    "httpclient",
    "python-requests",
    "python-urllib",
    "aiohttp",
    "go-http-client",
    "okhttp/",
    "java/",
    "axios/",
    "node-fetch",
    "scrapy",
    "headlesschrome",
    "phantomjs",
    "puppeteer",
    "playwright",
    "selenium",
    "facebookexternalhit",
    "lighthouse",
];

/// Makers of telephones whose names have such a part.
const NOT_ROBOTS: [&str; 1] = ["cubot"];

/// Whether the user agent is a known robot's.
pub(crate) fn is_known(user_agent: &str) -> bool {
    let mut text = user_agent.to_ascii_lowercase();
    for name in NOT_ROBOTS {
        text = text.replace(name, "");
    }
    PARTS.iter().any(|part| text.contains(part))
}

#[cfg(test)]
mod tests {
    use super::is_known;

    #[test]
    fn robots_are_known_and_people_are_not() {
        for robot in [
            "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
            "curl/8.5.0",
            "python-requests/2.32",
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 HeadlessChrome/126.0",
            "Mozilla/5.0 (Linux; Android 9; CUBOT X19) SomeCrawler/1.0",
        ] {
            assert!(is_known(robot), "{robot}");
        }
        for person in [
            "",
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15",
            "Mozilla/5.0 (Linux; Android 9; CUBOT X19) AppleWebKit/537.36 Chrome/126.0",
        ] {
            assert!(!is_known(person), "{person}");
        }
    }
}
