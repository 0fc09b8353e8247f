"""Words whose syllables their spelling does not tell: a number, then the words with so many.

The English ones are the commonest that the rules of syllables.py miss, with the counts of the CMU Pronouncing
Dictionary (BSD licence), save where everyday speech is shorter.
"""

from __future__ import annotations


def _read(rows: str) -> dict[str, int]:
    table, count = {}, 0
    for item in rows.split():
        if item.isdigit():
            count = int(item)
        else:
            table[item] = count
    return table


ENGLISH_EXCEPTIONS = _read(
    """
    1 belle coop dea drawer drawers elle fierce fire fires hi hmm hour hours huang i'm isle isles juan
    ma'am maher mm mmm ms our ours pierce pierced prayer real realm realms seoul shh vaughan y'all
    2 acne acre acres agnes ahmed alfred andre ante argue argued argues aspirin averaged awesome barefoot
    bauer being berkeley blessed bluetooth boise boredom bracelet bracelets bruins bryan bryant business
    cafe cafes café carlisle catholic catholics cement centre centres chaos chile chloe chocolates choir
    cleveland clueless coleman collier colonel comeback cooper crooked cruel cushion dante debuted
    diamond diamonds diaper different dr driveway dryer duo dyer evening evenings every eyebrow eyebrows
    farewell fashion fashioned fibre fiercely flickr flower flowers fluent fluids flyer flyers forecast
    forecasts forefront forehead foreman foremost frontier gateway genius genre genres geo georgetown
    giant giants gimme gloucester goa going guidelines hatred headaches hereby herpes homestead hundred
    ibn iceberg iceland ids jaime jesse joanne joel joey jorge jose julius junior juniors kiev kobe kuala
    leah leicester liam liar liars lifespan lifestyle limestone linkedin lion lions livestock lois louie
    louis louise luis lyon lyons manuel maui maybe mccain mccoy mcgee mcgraw mckay mclean metre metres
    michelle milestone milestones minecraft monte mr mrs mueller myers naive naked nashville naïve
    neville ngo ngos nike nineteen nineteenth ninety noah noel notre o'clock ok oneself opera people
    peoples pepe persuade phoebe piercing pinterest poem power premiere princeton psyche quiet really
    rely rene reuse reyes rhythm rugged ruined ruins ryan sacred safety salesman samuel savior science
    senior seniors shakespeare shanghai shower sidewalk sideways soldier soldiers someday someone
    sophomore sovereign spaceship spokesman statesman suarez surreal takeoff theorem thereby thereof
    torres tower trademark tumblr tv tyres unreal vineyards visuals wednesday whereas whereby wholesale
    wholesome wicked widened widespread worcester wretched wyatt xavier zoe
    3 aaa acc adobe affluent afl albeit alias alien aliens alliance ama amc amd angeles anime apache api
    appliance archaic arguing ariel atheist atheists atm atp averages averaging basically beautifully
    beforehand behavior behaviors beloved beverages beyonce bosnia businesses businessman businessmen
    calcium camera cavaliers cgi chaotic chilean chocolate coincide comfortable compliance compliant
    convenience convenient cpu crimea croatia damien decorative deity denial diego drastically dui
    ecuador eduardo element elements elias embryo ems enrique epa everyday everyone excellency family
    favorite favourite fda fiance fiancé fiesta finale firefox fireplace forecasting gabriel garcia
    genuine hawaii hbo healthier hercules heroic heroin heroine homelessness homeowners however ibm idea
    ideas ikea imagery impoverished influence influenced interested interesting jacksonville jeopardy
    joanna jonathan karate kardashian liable libya libyan lineage linear linebacker lionel logically
    loneliness makeover mania massacre mba mccarthy mccartney mcconnell mcdonald mcdonalds mcgregor
    mckenzie mclaren mclaughlin mercedes messiah mohamed mohammed montgomery moreover mosaic mri naomi
    nausea nuclear nucleus oasis patio persuaded persuasion persuasive pga philippe pneumonia policeman
    policemen posterior premiership principally proactive radically rafael ratio ratios recipe recipes
    recreate reinforce reinforced reliance reliant reopen reopened resilient restaurant restaurants
    reunion reunite rna rosemary ruining rwanda salisbury samoa sciences scientist seattle sesame several
    shareholder shareholders sierra socio solely sos sovereignty spokesperson stakeholders stereo suicide
    suicides suv takeover temperament theatre theatres tokyo tuition ufo uss valuable vegetable
    vegetables vertically vienna vip visually wastewater watershed whatever wherever whoever widening
    wyoming zimbabwe
    4 actually adhd affiliate affiliates aforementioned albania albuquerque alliances aluminium
    appliances apprenticeship arguably armenia armenian behavioral catastrophe centennial coalition
    coefficient coincided coincidence colonial complementary constituent constituents continuum
    conveniently cristiano dementia diabetes diarrhea edinburgh emotionally enthusiast enthusiasts espn
    estonia european europeans fashionable firefighters genetically genuinely geographic geography
    geology geometric geometry ieee inconvenience inconvenient influences influencing influential
    influenza initiative initiatives insomnia intuition intuitive invaluable iranian ironically judaism
    karaoke kilometres laboratories laboratory literally marijuana mechanically mediocre millennial
    neuroscience nevertheless nypd oceanic oecd pancreatic perennial realization recreation reimbursement
    reinforcement reinforcements reinforcing reliable reliably reunited romania romanian santiago
    scientific slovenia smithsonian specifically stereotype stereotypes strategically suicidal tasmania
    temperature theatrical ukrainian unrealistic unreasonable usda ussr usually valencia venezuela
    venezuelan veterinary whatsoever
    5 affiliated affiliation ambiguity automatically ceremonial choreography christianity constituency
    economically enthusiasm enthusiastic genealogy geographical geological humiliated humiliating
    humiliation judiciary liabilities liability lithuania louisiana macedonia minneapolis palestinian
    palestinians physiology psychologically radioactive realistically recreational retaliation
    schizophrenia sociology spontaneously systematically undeniable unreliable
    6 beneficiaries beneficiary colonialism ecclesiastical fyi mediterranean physiological reconciliation
    reliability simultaneously
    7 confidentiality socioeconomic
    """
)

# An ending -ent that is heard; in a verb it is mute (ils parlent). Adverbs in -ment are heard besides.
FRENCH_SOUNDED_ENT = _read(
    """
    1 absent accident adolescent agent ambiant apparent ardent argent auvent cent client conscient content continent
    couvent décent dent différent équivalent évident excellent fréquent impatient inconscient indulgent
    ingrédient innocent insolent intelligent lent occident orient parent patient permanent précédent président présent
    prudent récent sergent serpent souvent talent torrent transparent urgent vent violent
    """
).keys()

FRENCH_EXCEPTIONS = _read(
    """
    1 août pied pieds clef eu eue eus eut hein week
    2 pays monsieur messieurs week-end maïs naïf paysan
    3 paysage paysans abbaye
    """
)

GERMAN_EXCEPTIONS = _read(
    """
    1 team teams deal deals fake job jobs knie ski chef couch mail dream cream ich's geht's gibt's wie's hab's
    2 baby babys okay seen feen knien schrien service e-mail online facebook science niveau bureau
    image erschien verdien
    3 ideen
    """
)
