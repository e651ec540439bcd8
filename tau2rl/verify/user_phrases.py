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
    r"\(?\b\d{3}\)?[\s.-]?\d{3}[\s.-]?\d{4}\b|\+\d[\d ]{8,}\d\b",  # a telephone number
    r"\b\d{5,}\b",
)
SHORT_NUMBER = any_of(  # the last digits of a card, a PIN
    r"\b(?:ending|ends|last (?:four|4)(?: digits)?(?: are| is|:)?|pin(?: code| number)?(?: is|:|,)?)"
    r"(?: in| with)?\s+#?(\d{4})\b",
    r"\b(?:visa|master ?card|amex|american express|discover|debit|credit|card)\b[^.?!\d$]{0,30}\b(\d{4})\b",
)
STREET = re.compile(  # what it is called without the last word, which may be short
    r"\b(\d{1,5} [A-Z][a-z]+)(?: [A-Z][a-z]+)?"
    r" (?:St|Street|Ave|Avenue|Dr|Drive|Rd|Road|Ln|Lane|Blvd|Boulevard|Court|Ct|Way|Place|Pl)\b"
)
NUMBER = re.compile(  # of three digits at least, or with hundredths: fewer are counts, sizes and times of day
    r"(?<![\w#@/:.,-])\$?((?=[\d,]*\d[\d,]*\d[\d,]*\d|\d+\.\d\d)\d{1,3}(?:,\d{3})+(?:\.\d+)?"
    r"|(?=\d{3}|\d+\.\d\d)\d+(?:\.\d+)?)(?![\w@/:%-]|[.,]\d)"
)
ANY_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
TIME = re.compile(r"\b(\d{1,2}):([0-5]\d)\b(?!:)")
DEVICE = any_of(r"\b(?:iphone|galaxy|pixel|oneplus|xperia)\b(?: (?:s|note )?\d+\w*)?")
MEASURE = re.compile(r"\d{1,4}[a-z]{1,6}|\d+(?:-[a-z]+)+", re.IGNORECASE)  # 10am, 32GB, 2-hour: no identifiers
_KIN = (
    "sister|brother|wife|husband|(?:girl|boy)?friend|(?:grand)?(?:son|daughter|mother|father)|colleague|partner|cousin|assistant"
    "|boss|neighbor|aunt|uncle|niece|nephew"
)
NAME = re.compile(  # whom the user introduces; in this case alone, capitals matter
    rf"\b(?:[Mm]y name is|[Mm]y name's|I am|I'm|[Tt]his is|(?:{_KIN})(?:'s name is|,| is called| is named| named| called| is)?)"
    rf" ([A-Z][a-z]+ [A-Z][a-z]+)\b|\b[Mm]y (?:{_KIN}),? (?:called |named |is called )?([A-Z][a-z]+)\b"
)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?"
    r"|dec(?:ember)?)\.?"
)
_TH, _YEAR = r"(?:st|nd|rd|th)?", r"(?:,? (\d{4}))?"
DATE = re.compile(  # groups: y-m-d; a/b/y; month, day, year; day, month, year
    rf"\b(?:(\d{{4}})[-/.](\d\d?)[-/.](\d\d?)|(\d\d?)[-/.](\d\d?)[-/.](\d{{4}})"
    rf"|{_MONTH} (?:the )?(\d\d?){_TH}{_YEAR}|(\d\d?){_TH}(?: of)? {_MONTH}{_YEAR})\b",
    re.IGNORECASE,
)

# --- the agent asks, waits, goes on -----------------------------------------------------------------------------------

WHAT_ELSE = any_of(  # a sentence that offers more help: it leaves nothing open
    r"[^.?!\n]*\b(?:(?:anything|something|what) (?:else|more)|further (?:help|assist\w*|questions?)|more (?:i|we) can)\b"
    r"[^.?!\n]*[.?!]?",
    r"[^.?!\n]*\bif you(?: ever)? (?:need|want|have|wish|would like|prefer)\b(?![^.?!\n]*\b(?:proceed|go ahead|confirm|yes)\b)"
    r"[^.?!\n]*\b(?:let me know|say the word|reach out|contact us|just ask|transfer you|connect you)\b[^.?!\n]*[.?!]?",
    r"[^.?!\n]*\bfeel free to (?:reach out|contact|ask|call|come back|let)\b[^.?!\n]*[.?!]?",
)
_WORKS = "check|look|proceed|change|update|modify|return|run|find|search|do|go|take|get|make|apply|add|submit|see"
_SERVES = "look up|pull up|locate|process|issue|arrange|book|switch|move|transfer|rebook|refund|upgrade|credit|offer|send|cancel"
_NOT_TO_DO = "note|hold|be|keep|let|feel|do|don|contact|reach|allow|visit|call|remember|accept"
LEAVES_OPEN = any_of(  # a question, a request, a proposal, or a promise that has yet to be kept
    r"\?",
    rf"\bplease (?!(?:{_NOT_TO_DO})\b)\w+",
    r"\bplease[.!]\s*$",
    r"(?:^|[.!?:;] )(?:(?:just|now|then|first|next),? )?(?:set|test|toggle|check|run|turn|switch|restart|reboot|reseat"
    r"|take(?! care| your time)|open"
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
OFFERS = any_of(  # to do it itself
    r"\b(?:may|shall|should|can|could) i\b",
    r"\bi (?:can|could|will)\b|\bi'll\b(?! need you)|\bhelp(?:s)? me\b|\blet me\b",
    r"\b(?:would you like|do you want)\b",
)
SENTENCE_END = re.compile(r"(?<=[.?!])\s+")
DECLINES = any_of(
    r"\b(?:no|nope)\b(?=\s*(?:[,.!;-]|$|thank))",
    r"\bnever ?mind\b",
    r"\bforget (?:it|about)\b",
    r"\b(?:don't|do not) (?:want|need|do|think)\b",
    r"\bnot (?:now|today|interested|anymore|any more|worth|going to)\b",
    r"\brather (?:not|keep|leave|wait)\b",
    r"\b(?:leave|keep) (?:it|them|things|everything|the)\b",
    r"\bcall (?:you )?back\b|\banother (?:day|time)\b|\bthink (?:it over|about it)\b",
)

# --- words that are not a user's --------------------------------------------------------------------------------------

_THINGS = (  # that belong to the user, who does not call them "yours"
    "orders?|reservations?|bookings?|accounts?|lines?|sim(?: card)?|zip(?: code)?|postcode|user id|identity|e-?mail address"
    "|(?:shipping )?address|date of birth|(?:credit |gift )?card|payment method|bag(?:gage|s)?|luggage|seats?|tickets?|itinerary"
    "|membership|profile|tracking number|phone number|data usage|bill|plan|phone|device|handset"
)
_AGENTS_OWN = "own|system|policy|company|website|store|app|records?|listed|stated"
_SERVED = (
    "cancel+ed|processed|issued|refunded|exchanged|booked|modified|upgraded|rebooked|applied|scheduled|arranged|credited|placed"
    "|submitted|completed|approved"
)
_CASE = "(?<!my )(?<!that )(?:order|reservation|booking|refund|return|exchange)"
SERVICE = any_of(  # no user says it, whatever else is said
    r"<tool_call>",
    r"\"arguments\"\s*:",
    r"^\s*(?:agent|assistant|representative|customer|user)\s*:",
    r"\bhow (?:can|may) i (?:help|assist|be of)\b",
    r"\b(?:anything|something) (?:else|more|further)\b[^.?!]{0,20}\b(?:(?:i|we) (?:can|could) (?:help|assist|clarify)|for you)\b",
    r"\b(?:happy|glad|pleased|delighted|here) to (?:help|assist) you\b|\b(?:gladly|certainly) (?:help|assist) you\b",
    r"\bi can (?:certainly )?help you\b",
    r"\bthank(?:s| you) for (?:contacting|calling|reaching out|choosing|being a)\b",
    rf"\bi(?:'ve| have) (?:(?:now|successfully|just|also|gone ahead and) )+(?:{_SERVED})\b",
    rf"\byour\s+(?:(?!{_AGENTS_OWN})[\w-]+\s+){{0,2}}(?:orders?|reservations?|bookings?) (?:has|have|is|are) (?:now )?(?:been )?"
    rf"(?:successfully )?(?:{_SERVED})\b",
    flags=re.MULTILINE,
)
USERS_WORDS = any_of(  # whoever says it speaks for itself: what an agent might say as well is then a user's
    r"\bmy (?!records?\b|side\b|end\b|systems?\b|screen\b|supervisor|colleagues?\b|pleasure|apolog)\w",
    r"\bi(?:'d| would) (?:like|prefer|love|rather|appreciate)\b(?! to apologi)",
    r"\bi (?:really |just |still |also |actually )?"
    r"(?:want|wanted|don't|do not|didn't|agree|prefer|can't (?:remember|recall|find))\b",
    r"\b(?:help|transfer|refund|charge|verify|verifying|from|to) me\b",
    r"\bplease (?:just |now )?(?:proceed|go ahead|cancel|process|update|change|refund|return|exchange|book|upgrade|use|issue"
    r"|charge)\b",
)
_DOES = (  # for a user, in any form
    r"process|issu|arrang|refund|upgrad|credit|offer|send(?:ing)? (?:you|an?)\b|look(?:ing)? (?:up|into)|pull(?:ing)? up|locat"
    r"|submit|apply|appli|schedul|modif|rebook|forward|add|charg|restor|escalat|connect(?:ing)? you|verif"
)
_DID = (
    r"process|issu|arrang|refund|upgrad|credit|sent (?:you|an?|the)\b|look(?:ed)? (?:up|into)|pulled up|locat|submit|appli"
    r"|schedul|add|updat|reserv"
)
_I_DO = r"(?:now |just |also |gladly |first |then |go ahead and |gone ahead and |successfully |certainly )*"
AGENTS_WORDS = any_of(
    # what is the user's, and what is the company's
    rf"\byour\s+(?:(?!{_AGENTS_OWN})[\w-]+\s+){{0,2}}(?:{_THINGS})\b(?!\s+(?:system|department|team|policy|page))",
    r"\bour (?:network|systems?|side|records|end|team|polic(?:y|ies)|database|website|store|company|customers?|rules|terms"
    r"|hotline)\b",
    r"\b(?:call|contact|reach|visit|write to|choosing|calling) us\b",
    r"\bon my side\b|\bi (?:can )?(?:see|have) [^.?!]{0,50}(?:in the system|on file)\b",
    # formulas of service
    r"\bassist you\b",
    r"\b(?:happy|glad|pleased|delighted|here) to (?:help|assist)(?! others)\b",
    r"\byou(?:'re| are) (?:very |most )?welcome\b|\bpleasure (?:to|helping|serving|assisting)\b",
    r"\b(?:anything|something) (?:else|more|further)\b[^.?!]{0,20}\b(?:you (?:need|want|wish)|you'd like|on your mind)\b",
    r"\bif you need anything\b|\b(?:do not|don't) hesitate\b|\bfeel free to\b|\byou(?:'re| are) all set\b",
    r"\b(?:sorry to hear|happy to (?:hear|sort)|(?:glad|happy) (?:i|we) could (?:help|be of)|safe travels)\b",
    r"\bplease (?:hold(?! off)|allow|accept|bear with)\b|\bbe right back\b",
    r"\bapologi[sz]e for (?:the|any|this) (?:inconvenience|trouble|delay|wait)|\b(?:i|we) regret\b",
    r"\bwill (?:contact|call|e-?mail) you\b",
    r"\bthank(?:s| you) for (?:verifying|holding|bringing|providing|your (?:request|cooperation|order|call|business))\b",
    r"\bi (?:\w+ly |do )?understand (?:how|that this|that must|your (?:frustration|concern|disappointment))\b",
    r"\blet's (?:troubleshoot|go through|get (?:this|that) (?:sorted|fixed))\b|\bwe'll get (?:this|that|it)\b",
    r"\bto get started,|\blet(?:'s| us) (?:have a look|take a look)\b",
    r"\bi(?:'d| would)? (?:recommend|advise|suggest (?:that (?:you|we)|to\b|\w+ing\b))",
    r"\bmoment,? (?:please,? )?while i\b|\bcan you hold\b",
    # what an agent does for somebody, did, or announces
    r"\b(?:let me|i'll|i will|i can|i could|i would|should i|shall i|may i|can i|could i|i've|i have|i am|i'm)\b"
    r"(?! (?:a|one|another)\b)[^.?!]{3,60}(?<!question )(?<!task )(?<!works )\bfor you\b",
    rf"\bi(?:'ll| will|'m| am)(?: going to)? {_I_DO}(?:{_DOES})\w*\b(?! (?:it |that )?back\b)(?![^.?!]*\bmyself\b)",
    rf"\bi (?:can|could) {_I_DO}(?!add\b)(?:{_DOES})\b|\bi can refuel\b|\byou(?:'ve| have) (?:exceeded|used up)\b",
    r"\bi(?:'ll| will) (?:now|gladly|go ahead and) (?:cancel|exchange|return|book|transfer)\b",
    rf"\bi(?:'ve| have) {_I_DO}(?:{_DID})\w*\b|\bi(?:'ll| will) (?:now )?get (?:[\w-]+ ){{1,4}}(?:{_SERVED}|done|sorted)\b",
    r"\bi(?:'ve| have)? found (?:an?|the|one|two|three|several|some) [^.?!]{0,20}"
    r"\b(?:flights?|items?|orders?|reservation|options?|variants?|match(?:es)?)\b",
    r"\bi(?:'ll| will| can| could) (?:now |just )?(?:text|move|walk|guide) (?:it|this|that|you)\b",
    r"\bi(?:'ll| will) put [^.?!]+ through\b",
    rf"\b{_CASE}s? (?:(?:has|have) (?:now )?been|(?:is|are) now) [^.?!]{{0,20}}"
    rf"(?:{_SERVED}|updated|changed|made|in place|under ?way)\b[^?]*$",
    r"\byou(?:'ll| will| should) (?:soon |now )?(?:receive|get|see) (?:an?|the|your|it)\b|\bon (?:its|their) way to you\b",
    r"\bto your (?:phone|inbox|e-?mail)\b|\bi can see (?:from here|here (?:that|on)|on (?:your|the)|in your)\b",
    r"\b(?:we|i) (?:do |currently |also )*(?:have|offer|carry)\b[^.?!]{0,60}\b(?:in stock|available)\b",
    r"\bwe have (?:this|these|that|it|them)\b",
    # what an agent asks for
    r"\b(?:what|which|how|when|where|do|would|are|will)\b[^.?!]{0,40}\b(?:you|we) (?:\w+ )?"
    r"(?:like|prefer|want|wish|take|intend|going to pay|begin|start|pay|have a prefer\w+|be (?:travel|pay)\w+)\b"
    r"(?! (?:me|my)\b)[^.?!]*\?",
    r"\b(?:may|shall|should|might) i (?:charge|process|proceed|ask you|go ahead)\b|\bi have to ask\b|\bconvenient for you\b",
    r"\bi(?:'ll| will)(?: first| also)? need (?:some|a few|a bit of|more|to (?:know|verify|ask)|you)\b|\bi need you to\b",
    r"\bdoes that (?:work|sound (?:good|right|ok(?:ay)?)) ?(?:for you)?\?",
    r"\bverify (?:the|your) identity\b",
    r"\b(?:confirm|specify|choose|select|indicate)\b[^.?!]{0,60}\byou(?:'d like| want| wish| prefer| would like)\b",
    r"\b(?:could|can|may|would) (?:you|i) (?:please )?(?:(?:provide|have|verify|confirm|get|describe) your|describe the)\b",
    r"\bso (?:that )?i can (?:check|look|verify|find|locate|help)\b|\breply yes\b|\bverify that the following\b|\bsuit you\b",
    r"\b(?:do you have|trouble you for|give me) the (?:order|reservation|booking) (?:number|id)\b[^.?!]*\?",
    r"\bwhat(?:'s| is) the (?:user id|date of birth|zip(?: code)?)\b",
    r"\btell me (?:what you (?:see|want|need)|which of|whether (?:the bars|you)|when you)\b",
    flags=re.MULTILINE,
)
_AT_A_PHONE = (
    "remove|reseat|take|switch|turn|disconnect|restart|reboot|take out|open|dial|wipe|slide|tap|head over|go to|run|toggle"
    "|insert|try"
)
INSTRUCTS = any_of(  # the other side at a phone, which only the user has
    rf"(?:^|[.!?,;] )(?:(?:now|next|then|so|please|first|simply),? )*(?:{_AT_A_PHONE})"
    r" (?:the|your|it|to|into|a|another|restarting)\b",
    rf"\b(?:please|could you|can you|would you) (?:{_AT_A_PHONE}) (?:the|your|it|to|into|a|another|sending)\b",
    flags=re.MULTILINE,
)
OUT_OF_CHARACTER = any_of(
    r"\bas an? (?:ai|artificial|language|llm)\b",
    r"\blanguage model\b",
    r"\bmy (?:instructions?|script|scenario|persona|role|prompt|task) (?:says?|tells?|states?|is|are|asks?|now)\b",
    r"\b(?:according to|per|following|based on) (?:my (?:instructions?|prompt)|(?:my|the) (?:script|scenario|persona|prompt))\b",
    r"\bthe persona\b|\bthe scenario (?:also )?(?:asks|says|wants)\b",
    r"\bi (?:was|am|have been) instructed\b|\bif the agent\b|\bthe scenario\b|\bsystem prompt\b",
    r"\bsimulat(?:ed|ion|or)\b|\brole-?play",
    r"\bthe (?:user|customer|caller) (?:wants?|would|is|has|should|asks?|says?|will|needs?|prefers?|can|agrees?|confirms?"
    r"|declines?|accepts?)\b",
    r"^\s*[(\[*]+\s*[A-Za-z][^)\]*]{10,}[)\]*]",  # a stage direction
)

# --- reports of what a phone shows ------------------------------------------------------------------------------------

_HANDLED = (
    "toggled|turned|switched|restarted|rebooted|reseated|re-?inserted|removed|reset|granted|disconnected|connected|enabled"
    "|disabled|set|changed|took|taken|put|done|did|allowed|updated|paid|made the payment|ran|run|tested"
)
DEED = any_of(
    rf"\bi(?:'ve| have)? (?:just |now |already )*(?:{_HANDLED})\b",
    rf"\b(?:has|have) been (?:{_HANDLED})\b|\b(?:off|on) (?:it is|now)\b",
    r"^\W*(?:ok(?:ay)?|all|alright|there)?[, ]*done\b",
)
NO_REPORT = any_of(  # a question, a difficulty, a wish or a plan
    r"\?|\bplease\b",
    r"\b(?:can't|cannot|unable|not able|don't know|not sure|no idea|don't dare|don't understand)\b",
    r"(?:^|[.!?;] )(?:what|how|where|which)\b",
    r"\b(?:i'll|i will|i won't|let me|going to|would|could|should|want|need|prefer|rather|one at a time|give me)\b",
)
AFRESH = any_of(r"\b(?:again|once more|re-?run|re-?test|re-?try|now)\b")
