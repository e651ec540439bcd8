"""Words by which `user_faults.py` hears what a simulated user did: patterns over English, compiled once.

A pattern is a list of short ones, each of which would do. All are searched for in any case.
"""

from __future__ import annotations

import re


def any_of(*patterns: str, flags: re.RegexFlag = re.NOFLAG) -> re.Pattern[str]:
    """One pattern that is found where one of these is, in any case."""
    return re.compile("|".join(patterns), re.IGNORECASE | flags)


# --- facts ------------------------------------------------------------------------------------------------------------

IDENTIFIER = any_of(
    r"[\w.+-]+@[\w-]+(?:\.\w+)+",  # an e-mail address
    r"#?\b(?=[A-Za-z_-]*\d)(?=[\d_-]*[A-Za-z])[A-Za-z0-9][\w-]{3,}\b",  # letters and digits together
    r"\(?\b\d{3}\)?[\s.-]?\d{3}[\s.-]?\d{4}\b",  # a telephone number
    r"\b\d{5,}\b",
)
SHORT_NUMBER = re.compile(
    r"\b(?:ending (?:in|with)|last (?:four|4)(?: digits)?(?: are| is|:)?|pin(?: code| number)?(?: is|:|,)?)\s+#?(\d{4})\b",
    re.IGNORECASE,
)
MEASURE = re.compile(r"\d{1,4}[a-z]{1,6}|\d+(?:-[a-z]+)+", re.IGNORECASE)  # 10am, 32GB, 2-hour: no identifiers
_KIN = "sister|brother|wife|husband|friend|son|daughter|mother|father|colleague|partner|cousin"
NAME = re.compile(  # whom the user introduces; in this case alone, capitals matter
    rf"\b(?:[Mm]y name is|[Mm]y name's|I am|I'm|[Tt]his is|(?:{_KIN})(?:'s name is|,| is| named| called)?)"
    r" ([A-Z][a-z]+ [A-Z][a-z]+)\b"
)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH, _TH, _YEAR = rf"({'|'.join(MONTHS)})[a-z]*\.?", r"(?:st|nd|rd|th)?", r"(?:,? (\d{4}))?"
DATE = re.compile(  # groups: y-m-d; a/b/y; month, day, year; day, month, year
    rf"\b(?:(\d{{4}})[-/.](\d\d?)[-/.](\d\d?)|(\d\d?)[-/.](\d\d?)[-/.](\d{{4}})"
    rf"|{_MONTH} (?:the )?(\d\d?){_TH}{_YEAR}|(\d\d?){_TH}(?: of)? {_MONTH}{_YEAR})\b",
    re.IGNORECASE,
)

# --- the agent asks, waits, goes on -----------------------------------------------------------------------------------

WHAT_ELSE = any_of(  # a sentence that offers more help: it leaves nothing open
    r"[^.?!]*\b(?:(?:anything|something|what) (?:else|more)|further (?:help|assist\w*|questions?)|more (?:i|we) can)\b"
    r"[^.?!]*[.?!]?"
)
_WORKS = "check|look|proceed|change|update|modify|return|run|find|search|do|go|take|get|make|apply|add|submit|see"
_SERVES = "look up|pull up|locate|process|issue|arrange|book|switch|move|transfer|rebook|refund|upgrade|credit|offer|send|cancel"
_NOT_TO_DO = "note|hold|be|keep|let|feel|do|don|contact|reach|allow|visit|call|remember|accept"
LEAVES_OPEN = any_of(  # a question, a request, a proposal, or a promise that has yet to be kept
    r"\?",
    rf"\bplease (?!(?:{_NOT_TO_DO})\b)\w+",
    r"\bplease[.!]\s*$",
    r"(?:^|[.!?:;] )(?:(?:just|now|then|first|next),? )?(?:set|test|toggle|check|run|turn|switch|restart|reboot|reseat|take|open"
    r"|read|tell|give|say|enter|describe|start|look|try|confirm|choose|send|show|let's)\b",
    r"\b(?:i await|all i need|i must know|i have to (?:ask|know))\b",
    r"\b(?:shall|should) i\b",
    r"\bto confirm\b",
    r"\bi(?:'ll| will| would)? need (?:you|your|an?|the|to know)\b",
    r"\bone moment\b",
    r"\bbear with me\b",
    r"\bgive me a (?:moment|second|minute)\b",
    rf"\b(?:i'll|i will|let me|i'm going to|i am going to) (?:now |just |quickly )?(?:{_SERVES}|{_WORKS})\b",
)
OFFERS = any_of(r"\b(?:may|shall|should|can|could) i\b", r"\b(?:would you like|do you want) me\b")  # to do it itself
SENTENCE_END = re.compile(r"(?<=[.?!])\s+")
DECLINES = any_of(
    r"\b(?:no|nope)\b(?=\s*(?:[,.!;-]|$|thank))",
    r"\bnever ?mind\b",
    r"\bforget (?:it|about)\b",
    r"\b(?:don't|do not) (?:want|need|do|think)\b",
    r"\bnot (?:now|today|interested|anymore|any more|worth|going to)\b",
    r"\brather (?:not|keep|leave|wait)\b",
    r"\b(?:leave|keep) (?:it|them|things|everything|the)\b",
)

# --- words that are not a customer's ----------------------------------------------------------------------------------

_THINGS = (  # that belong to the customer, who does not call them "yours"
    "orders?|reservations?|bookings?|accounts?|lines?|sim(?: card)?|zip(?: code)?|postcode|user id|identity|e-?mail address"
    "|(?:shipping )?address|date of birth|(?:credit |gift )?card|payment method|bag(?:gage|s)?|luggage|seats?|tickets?|itinerary"
    "|membership|profile|tracking number|phone number|data usage|bill"
)
_AGENTS_OWN = "own|system|policy|company|website|store|app|records?"
_SERVED = (
    "cancel+ed|processed|issued|refunded|exchanged|booked|modified|upgraded|rebooked|applied|scheduled|arranged|credited|placed"
    "|submitted|completed|approved"
)
_CASE = "(?<!my )(?<!that )(?:order|reservation|booking|refund|return|exchange)"
AGENTS_WORDS = any_of(
    r"<tool_call>",
    r"\"arguments\"\s*:",
    r"^\s*(?:agent|assistant|representative|customer|user)\s*:",
    # what is the customer's, and what is the company's
    rf"\byour\s+(?:(?!{_AGENTS_OWN})[\w-]+\s+){{0,2}}(?:{_THINGS})\b(?!\s+(?:system|department|team|policy|page))",
    r"\b(?:restart|reboot|remove|insert|reset|unlock|take) your (?:phone|device|sim|handset)\b",
    r"\bour (?:network|systems?|side|records|end|team|polic(?:y|ies)|database|website|store|company|customers?|rules|terms)\b",
    r"\b(?:call|contact|reach|visit|write to) us\b|\bwe (?:do |also |currently )?have (?:this|these|that|it|them) \b",
    r"\bi (?:can )?see\b[^.?!]{0,60}\bin the system\b",
    # offers, and formulas of service
    r"\bhow (?:can|may) i (?:help|assist|be of)\b",
    r"\b(?:happy|glad|pleased|delighted|here) to (?:help|assist)\b|\b(?:gladly|certainly) (?:help|assist)\b|\bassist you\b",
    r"\bi can (?:certainly )?help you\b",
    r"\b(?:anything|something) (?:else|more|further)\b[^.?!]{0,20}"
    r"\b(?:i can|i could|for you|you (?:need|want|wish)|you'd like)\b",
    r"\bif you need anything\b|\b(?:do not|don't) hesitate\b|\byou(?:'re| are) all set\b|\bhappy to hear\b",
    r"\b(?:sorry to hear|safe travels)\b|\bverify (?:the|your|his|her|their) identity\b",
    r"\b(?:confirm|specify|choose|select|indicate)\b[^.?!]{0,60}\byou(?:'d like| want| wish| prefer| would like)\b",
    r"\bi(?:'ll| will) need (?:some|a few|a bit of|more) (?:details|information|info)\b",
    r"\bapologi[sz]e for (?:the|any|this) (?:inconvenience|trouble|delay)|\b(?:i|we) regret\b",
    r"\bthank(?:s| you) for (?:contacting|calling|reaching out|choosing|verifying|being a|holding|bringing)\b",
    r"\bthank(?:s| you) for providing (?:your|that|those|me)\b|\bi (?:\w+ly |do )?understand (?:how|that this|that must|your)\b",
    r"\blet's (?:troubleshoot|go through|get (?:this|that) (?:sorted|fixed) for you)\b",
    r"\bwe'll get (?:this|that|it) (?:\w+ )?(?:again|for you)\b",
    r"\b(?:one|just a|a) moment,? (?:please,? )?while i\b|\bcan you hold\b|\bplease hold\b|\bbe right back\b|\bget back to you\b",
    r"\bi(?:'d| would)? (?:recommend|advise|suggest (?:that (?:you|we)|to\b|\w+ing\b))",
    # what an agent does for somebody, did, or announces
    r"\b(?:let me|i'll|i will|i can|i could|i would|should i|shall i|may i|can i|could i|i've|i have|i am|i'm)\b"
    r"(?! (?:a|one|another)\b)"
    r"[^.?!]{3,60}(?<!question )(?<!task )(?<!works )\bfor you\b",
    rf"\bi(?:'ll| will| can| could) (?:now |just |gladly )*(?:{_SERVES}) (?:you|your)\b",
    rf"\bi(?:'ll| will) (?:now )?get (?:[\w-]+ ){{1,4}}(?:{_SERVED}|done|sorted)\b",
    r"\b(?:could|can|may|would) (?:you|i) (?:please )?(?:provide|have|verify|confirm|get) your\b",
    rf"\bi(?:'ve| have) (?:(?:now|successfully|just|also|gone ahead and) )+(?:{_SERVED})\b",
    r"\bi(?:'ve| have) (?:pulled up|located|found|looked up) the (?:order|reservation|booking|account|profile)\b",
    rf"\b{_CASE}s? (?:has|have) (?:now )?been (?:successfully |now )?(?:{_SERVED}|updated|changed|made)\b[^?]*$",
    rf"\b{_CASE}\b[^.?!]{{0,40}}\b(?:is|are) now (?:in place|under way|underway|processed|confirmed)\b[^?]*$",
    r"\byou(?:'ll| will) (?:receive|get) (?:an?|the|your) (?:e-?mail|confirmation|refund|notification)\b",
    r"\bwe (?:do |currently )?(?:have|offer|carry)\b[^.?!]{0,60}\b(?:in stock|available)\b",
    r"\bi can see (?:from here|here (?:that|on)|on (?:your|the)|in (?:your|the system))\b",
    r"\bi(?:'ll| will| can| could) (?:now |just )?(?:text|move|forward|walk|guide) (?:it|this|that|you)\b|\bto get started,",
    r"\bi(?:'ll| will) put the (?:order|reservation|booking|refund|return|exchange|change) through\b",
    r"\bpleasure (?:helping|serving|assisting)\b",
    # what an agent asks for
    r"\b(?:what|which|how|when|where)\b[^.?!]{0,40}\b(?:would|do) you (?:want|wish|take)\b(?! (?:me|my)\b)[^.?!]*\?",
    r"\b(?:may|shall|should) i (?:charge|process)\b",
    r"\bwould you (?:like|prefer)\b(?! (?:my\b|me\b))|\bdo you prefer\b",
    r"\bwould you (?:like|prefer|want) (?:me|us) to (?:process|issue|refund|apply|charge)\b",
    r"\b(?:do you have|trouble you for|could you provide|give me) the (?:order|reservation|booking) (?:number|id)\b[^.?!]*\?",
    r"\bwhat(?:'s| is) the (?:user id|date of birth|zip(?: code)?)\b",
    r"\btell me (?:what you (?:see|want|need)|which of)\b",
    r"\bi need you to (?:open|grant|go to|restart|reboot|toggle|insert|remove|turn|switch)\b|\btell me when you're ready\b",
    r"\b(?:now|please|next),? (?:take out|insert|remove|reinsert) (?:the|your) sim\b",
    flags=re.MULTILINE,
)
_AT_A_PHONE = "remove|reseat|disconnect|restart|reboot|take out|open|dial|wipe|slide|tap|head over|go to|run|toggle|insert|try"
INSTRUCTS = any_of(  # the other side at a phone, which only the user has
    rf"(?:^|[.!?,;] )(?:(?:now|next|then|so|please|first|simply),? )*(?:{_AT_A_PHONE}) (?:the|your|it|to|into|a|restarting)\b",
    flags=re.MULTILINE,
)
OUT_OF_CHARACTER = any_of(
    r"\bas an? (?:ai|artificial|language|llm)\b",
    r"\blanguage model\b",
    r"\bmy (?:instructions?|script|scenario|persona|role|prompt|task|goal) (?:says?|tells?|states?|is|are|asks?|now)\b",
    r"\b(?:according to|per|following|based on) (?:my|the) (?:instructions?|script|scenario|persona|prompt)\b",
    r"\bi (?:was|am|have been) instructed\b|\bif the agent\b|\bthe scenario\b|\bsystem prompt\b",
    r"\bsimulat(?:ed|ion|or)\b|\brole-?play",
    r"\bthe (?:user|customer|caller) (?:wants?|would|is|has|should|asks?|says?|will|needs?|prefers?|can|agrees?|confirms?)\b",
    r"^\s*[(\[*]+\s*[A-Za-z][^)\]*]{10,}[)\]*]",  # a stage direction
)

# --- reports of what a phone shows ------------------------------------------------------------------------------------

_HANDLED = (
    "toggled|turned|switched|restarted|rebooted|reseated|re-?inserted|removed|reset|granted|disconnected|connected|enabled"
    "|disabled|set|changed|took|taken|put|done|did|allowed|updated"
)
DEED = any_of(
    rf"\bi(?:'ve| have)? (?:just |now |already )*(?:{_HANDLED})\b",
    rf"\b(?:has|have) been (?:{_HANDLED})\b|\b(?:off|on) (?:it is|now)\b",
    r"^\W*(?:ok(?:ay)?|all|alright|there)?[, ]*done\b",
)
NO_REPORT = any_of(  # a question, a difficulty, a wish or a plan
    r"\?",
    r"\b(?:can't|cannot|unable|not able|don't know|not sure|no idea|don't dare|don't understand)\b",
    r"(?:^|[.!?;] )(?:what|how|where|which)\b",
    r"\b(?:i'll|i will|i won't|let me|going to|would|could|should|want|need|prefer|rather|one at a time|give me)\b",
)
AFRESH = any_of(r"\b(?:again|once more|re-?run|re-?test|re-?try|now)\b")
