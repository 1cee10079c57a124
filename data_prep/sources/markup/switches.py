"""Behaviour switches such as ``__NOTOC__``, in the languages of MediaWiki."""

# ruff: noqa: RUF001 -- words in many scripts

from __future__ import annotations

#: what stands between the underscores, in lower case
_WORDS = """
aabaw abschnitte_nicht_bearbeiten alaosalingita alltidinnehållsförteckning alltidinnhaldsliste alltidinnholdsliste
amarakitahukchaychu amasamiqtahukchaychu amasutitahukchaychu amaunanchaychu archivedtalk ascundecat
atawalmastirğizbaw aucunegalerie aucunetdm aucunindex aucunliennouvellesection aucunsommaire başlikdönüşümüyok bdy
begalerijos beredagsekc beturin bez_galerije bez_indeksa bez_izmena bez_izmjena bez_nove_veze_odeljka bez_sadržaja
bezcc bezeditovatčást bezedycjisekcji bezgalerie bezgalerii bezgalerije bezgalérie bezindeksa bezizmena bezizmjena
bezkazala bezkn bezkonverzenadpisu bezkonverzeobsahu bezks bezlinkupřidatkomentář beznovevezeodeljka bezobsahu
bezpretvaranjanaslova bezpretvaranjasadržaja bezsadrzaja bezsadržaja bezspisu beztc bezuređivanjaodlomaka bpn bps
brezgalerije brezkazala brezkazalavsebine brezurejanjarazdelkov böli̇di̇möndemew böli̇möndetki̇zbew bülemtözätüyuq
capdegalaria capdegalariá capdetaula capgaleria capindex captaula catamagada catcachee categoriaoculta
categoríaoculta catoculta catègorie_cachiê chỉ_mục chỉmục cuprins cá cágachuair daftarisi dasi deği̇şti̇ryok
dimadrangolygu dimgolyguadran dimrhestrgynnwys dimrhg dimtaflencynnwys disambig di̇zi̇n di̇zi̇nyok doldkat dwingio
düzenlemeyok ebdagallerija ebdaindiċi ebdakk ebdakonverturkontenut ebdakonverturtitlu ebdakt ebdasezzjonimodifika
ebdawerrej ebdaħolqasezzjoniġdida eiosiomuokkausta eisisluett emsafn endeks endeksyok endèxe enhallt
enlacecrearsección esten estenzaruret estençino et ettiq etyuq expectunusedcategory expectunusedtemplate
faraconvertirecontinut faraconvertiretitlu faracuprins faraeditsectiune faragalerie faraindex
faralegaturasectiunenoua fcc fct fi forcarsumario forcartdc forceerinhoud forcersommaire forcertdm forcetoc
forciér_la_trâbla forciér_lo_somèro forsirani_sadržaj forsiranisadržaj forteazacuprins fortuindekson forzar_tdc
forzaroíndice forzartdc forzartoc forçarsomari forçarsumário forçartaula forçartdc forçartdm forçataula ft
galereyayoq galeriita galeri̇yok galeri̇çino gancá ganmhírathrú ganta gantiontúnadteideal gantiontúnanábhair gantt
geen_galerij geengalery geenic geenindeks geenindex geeninhoud geeninhoudconversie geenio geennieuwesectielink
geennieuwkopjekoppeling geennieuwkopjeverwijzing geennuweafdeling geenpaginanaamconversie geentc geentitelconversie
gienbewarkseksie giengalderieje giengallerieje gienik gienindex gieninhoudkonversie gienniejkopjenverwiezing
gienonderwarpen gientitelkonversie gientk gi̇zli̇kat gi̇zli̇kategori̇ greyésernamedénewi̇ greyésernamedénewi̇çino
gøymdkat hakukonekielto hebmenegva hiddencat i ichidagilar ichidagilari ichidagilarmajburiy ichidagilaryoq
iigalleriija iirievdaditoasi iisis iisisdoallu indeks indekser indeksi indekso indeksu indeksuj indeksyoq index
indexar indexera indexieren indexovat indice indizieren indiċi ingabolkendring ingabolkredigering ingainnhaldsliste
ingendelendring ingenindeksering ingeninnehållsförteckning ingeninnholdsfortegnelse ingeninnholdskonvertering
ingeninnholdsliste ingennyseksjonslenke ingenseksjonsredigering ingentittelkonvertering ingetgalleri
inhaltsverzeichnis inhaltsverzeichnis_erzwingen inholtverteken inhoud inhoud_dwingen inkjegalleri
innehållsförteckning innhaldsliste innholdsfortegnelse innholdsliste inot inotdwengi interedigerasektion
intetgalleri io i̇dy i̇çeri̇kdönüşümüyok i̇çi̇ndeki̇ler i̇çi̇ndeki̇leryok i̇çi̇ndeki̇lerzorunlu jasirinsanat
jañaböli̇msi̇ltemesi̇ jogaleri joredaktimseksioni jotp kasxitakategorio kategoriaukryta kategoriefshehur
kategoritersembunyi kategori̇yanimiti̇ katmoħbija katsem kazalo kaŝitakategorio keeninholtverteken keenännernlink
kein_index kein_inhaltsverzeichnis kein_jallerie kein_neuer_abschnittslink kein_plus_link keine_galerie
keine_inhaltskonvertierung keine_titelkonvertierung keinegalerie keininhaltsverzeichnis không_album
không_chuyển_nội_dung không_chuyển_tên không_chỉ_mục không_liên_kết_mục_mới không_mục_lục không_nút_sửa_mục
khôngalbum khôngchuyểnnộidung khôngchuyểntên khôngchỉmục khôngliênkếtmụcmới khôngmụclục khôngnútsửamục kk
klasskudhys lahat lahatra lans legaturasectiunenoua legyentartalomjegyzék legyentj liennouvellesection
ligacaodenovasecao ligamseccionnovèla ligazóndanovasección ligaçãodenovaseção ligiloalnovasekcio
lim_de_novèla_sèccion linkdenovasecao linkdenovaseção linknovesekcije linknowejsekcji linkpřidatkomentář
liên_kết_mục_mới liênkếtmụcmới lns luôn_mục_lục luônmụclục løyndkat mabaw matjoq mazmundatqizw mazmuni mazmunsiz
mağlumatalmastirğizbaw mağlumatintürlendi̇rgi̇zbew menegva mqizw msiz mzmn mündəri̇catyox mục_lục mụclục
nakatagongkat naoeditarsecao naoindexar ncc neindekso neindeksu neindexovat nekonvertuenhavon nekonvertutitolon
nepomičnopreusmjeravanje nes neuer_abschnittslink neupravovaťsekcie newsectionlink ng ni nicht_indexieren
nicht_indizieren nieindeksuj niejeseksieverwiezing nietbewerkbaresectie nieuwesectiekoppeling nieuwesectielink
nincsgaléria nincsindex nincsszerk nincsszerkesztés nincstartalomjegyzék nincstj nincsújszakaszhiv
nincsújszakaszlink nion_endèxe nion_lim_de_novèla_sèccion nion_somèro niona_galerie niona_trâbla nirdasi nirdeks
nirgal nirkodul nirkosi nirprababa nirsuba niu nkh nkt nnsl no_editar_sección nocc nocontentconvert
noconvertircontenido noconvertirtitulo noconvertirtítulo noct noeditarseccion noeditarsección noeditsection
nogaleria nogalería nogallery noglobal noindex noindexar noindice noinot nokenkiskaki nonewsectionlink nonindexar
nopikturama notalk notaula notc notdc notitleconvert notoc nova_veza_odeljka novavezaodeljka novincularanuevaseccion
noviodlomakpoveznica nsl nt ntc nyseksjonslenke nyttavsnittlänk nãoeditarseção nãoindexar obsah onderwarpen
pakasqakatiguriya paksadaftarisi paksadasi pascapdedegalariá pascapdeligamseccionnovèla pascapdesomari pascapdetdm
pascapdindèx peidetudkat pengalihanstatik pengalihanstatis permanente_weiterleitung petik petis piiloluokka
plus_link poglavje prababa pranalabagianbaru primorani_sadržaj primoranisadržaj qalereyayox qoýmasiz qsiz
redireccioestatica redireccionestatica redireccióestatica redirecciónestática redirecionamentoestatico
redirecionamentoestático redirectionarestatica redirectionstatique redirèccion_imobila rejtettkat rejtettkategória
resum riindirizzstatiku rikchasuyunnaq sabi̇työnlendi̇rme sadrzaj sadržaj sakrivenakat sakrivenakategorija sanscc
sansconversioncontenu sansconversiontitre sansct sb seccionnoneditabla seccionoeditable secciónoeditable
secciónsnoneditables sectionnoneditable semcc semconverterconteudo semconverterconteúdo semconvertertitulo
semconvertertítulo semct semeditarsecao semeditarseção semgaleria semligacaodenovasecao semligaçãodenovaseção
semlinkdenovasecao semlinkdenovaseção semsumário semtdc sen_convèrsion_de_contegnu sen_convèrsion_de_titro
senbildaro sencdc sencdt sengalerio sengalería senligiloalnovasekcio senredaktisekciojn senredaktisekcion seníndice
sernamevurnayişçino sersiq sersiqçinyo sforzawerrej sg sin_galería sin_tdc sinenlacecrearsección sisdoallu
sisluettpakotus sisukord sisukordees sisukorrata sisällysluettelo skjultkategori skritakategorija skrivenakat
skrytákat skrytákategória skrýtkat slans slns somari sommaire somèro spis srs staotiesedeurverwiezing
statichetenayiş staticképřesměrování staticnapreusmeritev staticredirect statikaalidirekto statikusátirányítás
statischedoorverwijzing statischeredirect statiskomdirigering statisticnopreusmjerenje statistomdirigering
statičkopreusmerenje stati̇khetenayiş stati̇kyönlendi̇rme sumario sumário svç sèccion_que_pôt_pas_étre_changiê t
tahriryoq tanpadaftarisi tanpagaleri tanpaindeks tanpakonversiisi tanpakonversijudul tanpasuntinganbagian
taqiripatintürlendi̇rgi̇zbew tartalomjegyzék tartiblashyoq tatjoq taula tdc tdm tereonylahatra thể_loại_ẩn thểloạiẩn
tiyaqllapusapuna ti̇markerdişçino tj toc tp trâbla tsyasianagallery tsyasianalahatra tsyazoovaina turinys
tvinginnholdsfortegnelse uključisadržaj unanchay uuealaosalingita uuealaosalink verborgencat verbörgenkat
vershtoche_saachjrupp versteckte_kategorie verstoppt_kategorie vincularanuevaseccion vsilikazalovsebine vynútiťobsah
vždyobsah wartungskategorie werrej wiesinholtverteken wymuśspis yashirinturkum yeni̇başlikbağlantisi
yeni̇başlikbağlantisiyok yuyarina yuyarinannaq yuyarinataatipachiy zerrevurnayişçino zespisem zvç állandóátirányítás
æнæгалерей æнæсæр æнæхайивынæй índice újszakaszhiv újszakaszlink đổi_hướng_nhất_định đổihướngnhấtđịnh
ħolqasezzjoniġdida δεσμοσνεασενοτητας ευρετηριο κρυφηκατηγορια μεπινακαπεριεχομενων μεππ πινακασπεριεχομενων ππ
στατικηανακατευθυνση χωρισεπεξενοτ χωρισεπεξεργασιαενοτητων χωρισευρετηριο χωρισμετατροπηπεριχομενου
χωρισμετατροπητιτλου χωρισπινακαπεριεχομενων χωρισπινακοθηκη χωρισππ аабау аатын_уларыппакка агӏо_та_ца_еш аиндекс
албан_эге атауалмастырғызбау бац_чул бац_чулацам башласыз башлыкюк без_галереи без_галереї без_галерије без_галерэі
без_змісту без_измена без_измјена без_индекса без_нове_везе_одељка без_огл без_оглавления без_перетворення_заголовку
без_перетворення_тексту без_посилання_на_новий_розділ без_преобразования_заголовка без_преобразования_текста
без_редагув_розділу без_редактиране_на_раздели без_редактирования_раздела без_рэдагаваньня_сэкцыі без_садржаја
без_ссылки_на_новый_раздел без_уредување_на_поднаслови без_індексу безврскановподнаслов безгалерия безгалерија
безгалерије безизмена безизмјена безиндекс безиндекса безиндексиране безкн безкс безновевезеодељка
безпретворањенаслов безпретворањесодржина безсадржаја безсодржина безсъдържание безцц бемындәриҹот блг_иһн
булгуччу_иһинээҕилээх бязь_зьместу бүлекүзгәртүюк бөлідімөндемеу бөлімөндеткізбеу врскановподнаслов
връзка_за_нов_раздел галерея_чок галереята_суох допчу жасырынсанат жаңабөлімсілтемесі зміст зьмест зьмест_прымусам
индекс индексиране индекссыз индекстээмэ иһинээҕитэ иһинээҕитэ_суох иһн иһн_суох йац_уче йоза_хийцар_доцуш
йоцаш_хьажорг_оц_керлачу_декъан кистэммит_категория къайлаха_йолу_категори мабау мазмұндатқызу мазмұнсыз мазмұны
матжоқ мағлұматалмастырғызбау мағлұматынтүрлендіргізбеу меттигтерахь меттигтерахь_йоцаш мзмн мсыз мындәриҹот мқызу
мәҹбуријә_мындәриҹот не_канвэртаваць_назву не_канвэртаваць_тэкст нова_веза_одељка новавезаодељка обов_зміст обяз_огл
обязательное_оглавление огл оглавление посилання_на_новий_розділ приморани_садржај приморанисадржај прихов_кат
прихована_категорія сæртæ сæртимæ садржај сакривенакат салааны_уларыппакка саҥа_салааҕа_сигэ
саҥа_салааҕа_сигэтэ_суох скриенакат скриенакатегорија скритакатегория скрытая_категория содржина сосодржина
спасылка_на_новую_сэкцыю ссылка_на_новый_раздел статистикин_дӏасхьажорг статическое_перенаправление
статичкопреусмерење статичне_перенаправлення статичнопренасочување статычнае_перанакіраваньне схаваць_катэгорыю
съдържание съссъдържание тlедуьл_чул тlедуьллу_чулацамбар татжоқ тақырыпатынтүрлендіргізбеу тиэкиһин_уларыппакка
форсирани_садржај форсиранисадржај халбаҥнаабат_утаарыы хийцар_доцуш_коьрте хьажорг_оц_керлачу_декъан чажыт_аңгылал
чул чулацам эге_чок эчтелек індекс қоймасыз қсыз үлег_эдилгези_чок առանց_բաժնի_խմբագրման առանց_բով
առանց_պարունակության_փոփոխման առանց_սրահի առանց_վերնագրի_փոփոխման բով հղում_նոր_բաժնի_վրա ստիպել_բով אינהאלט
באהאלטענע_קאט באהאלטענע_קאטעגאריע הפניה_קבועה חייב_תוכן חייב_תוכן_עניינים יצירת_הערה לא_לחיפוש לחיפוש ללא_גלריה
ללא_המרת_כותרת ללא_המרת_תוכן ללא_יצירת_הערה ללא_עריכה ללא_תוכן ללא_תוכן_עניינים נישט_רעדאקטירן קטגוריה_מוסתרת
קיין_אינהאלט_טאבעלע קיין_גאלעריע תוכן תוכן_עניינים ااباۋ اتاۋالماستىرعىزباۋ اشاریہ اشاریہ_نہیں بافهرست بافہرست
بخش‌جدید بولىدىموندەمەۋ بولىموندەتكىزبەۋ بی‌بخش بی‌برخې بی‌فهرست بی‌نمایه بی‌نندارتونه بی‌نيولک بی‌نگارخانه
بی‌نگارخنه بی‌پیوندبخش بی‌پیوند‌بخش‌جدید بې_ليکلړ تاتجوق تاقىرىپاتىنتۇرلەندىرگىزبەۋ تحويلة_إستاتيكية تحويلة_ساكنة
تحويله_إستاتيكيه تحويله_ساكنه تصنيف_مخفي تغییرمسیرثابت جاسىرىنسانات جاڭابولىمسىلتەمەسى ربط_نیا_قطعہ
ربط_نیا_قطعہ_نہیں رده‌پنهان ساکن_رجوع_مکرر عنوان‌تبدیل‌نشده فهرس فهرسة فهرست فہرست فہرست_نہیں قسىز قويماسىز
لاتحريرقسم لاتحويل_عنوان لاتحويل_محتوى لاتع لاتم لافهرس لافهرسة لامعرض لصق_فهرس ليکلړ ماباۋ ماتجوق مازمۇنداتقىزۋ
مازمۇنسىز مازمۇنى ماعلۇماتالماستىرعىزباۋ ماعلۇماتىنتۇرلەندىرگىزبەۋ محتواتبدیل‌نشده مزمن مسىز مقىزۋ من_غير_تحريرقسم
من_غير_تحويل_محتوى من_غير_فهرس من_غير_معرض من_غير_وصلة_قسم_جديد من_غيرتحويل_عنوان منتقلی_عنوان_نہیں منتقلی_مواد_نہیں
ناترمیم_قطعہ نافہرست نمایه نيوليک نيوليکداره نگارخانہ_نہیں وصلة_قسم_جديد پوشیدہ_زمرہ پټه_وېشنيزه अननुक्रमणी
अनित्यपुनर्निदेशन अनित्यपुनर्निर्देशनम् अनुक्रम अनुक्रम_दिखाएँ अनुक्रमणिका अनुक्रमणिकानको अनुक्रमणिकाहवीच अनुक्रमणी
अनुक्रमणी_दर्श्यताम् अनुक्रमणीसचते अनुक्रमीत अनुभाग_सम्पादन_नहीं अनुभागसम्पादनं_नास्ति अविचलपुर्ननिर्देश असूचीबद्ध
क्रमीत गैलरी_नहीं छिपी_श्रेणी छुपी_श्रेणी न_लेखपरिवर्तनम् न_शीर्षकपरिवर्तितम् नवविभागदुवा नवीनविभागपरिसन्धिः
निगूहितवर्गः नूतनविभागसम्बद्धं नैलेप नैवअनुक्रमणिका नैवअनुक्रमणी नैवलेखपरिवर्त नैवशिर्षकपरिवर्त नैवसंक्रमणका
नैवसम्पादनविभाग नैवानुक्रमणी नैशिप प्रदर्शननको बिना_अनुक्रम लुप्तवर्ग वर्गलपवा विनाअनुक्रमीत विनाक्रमीत
विनानवविभागदुवा विनामजकुरबदल विनामब विनाशीब विनाशीर्षकबदल विभागअसंपादनक्षम विषय_जोड़े_कड़ी_रहित विषय_जोड़ें_कड़ी
विषय_सूची विषय_सूची_दिखाएँ विषय_सूची_दिखायें विषय_सूची_हीन विषयसूची विषयसूचीहीनः वीथिकाहीनः सूचीबद्ध स्थिर_अनुप्रेषण
स्थिर_पुनर्प्रेषण কোন_গ্যালারি_নয় কোন_গ্যালারী_নয় কোন_নতুন_অনুচ্ছেদের_লিঙ্ক_নয় কোন_নতুন_অনুচ্ছেদের_সংযোগ_নয়
কোন_নির্ঘণ্ট_নয় কোন_বিষয়বস্তু_রূপান্তরকারী_নয় কোন_বিষয়বস্তুর_ছক_নয় কোন_বিষয়বস্তুর_টেবিল_নয়
কোন_শিরোনাম_রূপান্তরকারী_নয় কোন_সম্পাদনা_অনুচ্ছেদ_নয় কোনগ্যালারিনয় কোনগ্যালারীনয় কোননতুনঅনুচ্ছেদেরলিঙ্কনয়
কোননতুনঅনুচ্ছেদেরসংযোগনয় কোননির্ঘণ্টনয় কোনবিষয়বস্তুরছকনয় কোনবিষয়বস্তুরটেবিলনয় কোনবিষয়বস্তুরূপান্তরকারীনয়
কোনশিরোনামরূপান্তরকারীনয় কোনসম্পাদনাঅনুচ্ছেদনয় গোপন_শ্ৰেণী নতুন_অনুচ্ছেদের_লিঙ্ক নতুন_অনুচ্ছেদের_সংযোগ
নতুনঅনুচ্ছেদেরলিঙ্ক নতুনঅনুচ্ছেদেরসংযোগ নির্ঘণ্ট নির্ঘণ্টনয় বিষয়বস্তুর_ছক বিষয়বস্তুর_টেবিল বিষয়বস্তুরছক
বিষয়বস্তুরটেবিল লুকায়িতবিষয়শ্রেণী লুক্কায়িতবিষয়শ্রেণী সূচী স্থির_পুনর্নির্দেশ স্থিরপুনর্নির্দেশ విషయసూచిక
విషయసూచికవద్దు ഉള്ളടക്കം ഉള്ളടക്കംഇടുക ഉള്ളടക്കംമാറ്റേണ്ട ഉള്ളടക്കംവേണ്ട ചിത്രസഞ്ചയംവേണ്ട തലക്കെട്ട്മാറ്റേണ്ട
പുതിയഖണ്ഡിക്കണ്ണി പുതിയഖണ്ഡിക്കണ്ണിവേണ്ട പുതിയവിഭാഗംകണ്ണി പുതിയവിഭാഗംകണ്ണിവേണ്ട സംശോധിക്കേണ്ട സൂചികവേണ്ട ไม่มีสารบัญ
ไม่มีแกลเลอรี่ ไม่มีแก้เฉพาะส่วน უგალერეო កុំបង្ហាញមាតិកា គ្មានបញ្ជីអត្ថបទ គ្មានមាតិកា ចំណាត់ថ្នាក់ក្រុមមិនបានបង្ហាញ
តំណភ្ជាប់ផ្នែកថ្មី តំនភ្ជាប់ផ្នែកថ្មី បង្ខំបញ្ជីអត្ថបទ បង្ខំមាតិកា បង្ខំអោយបង្ហាញមាតិកា បញ្ជីអត្ថបទ
ផ្នែកមិនត្រូវកែប្រែ មាតិកា មិនមានផ្នែកកែប្រែ មិនមានលិបិក្រម លាក់បញ្ជីអត្ថបទ លាក់ផ្នែកកែប្រែ លាក់មាតិកា
លាក់វិចិត្រសាល លិបិក្រម ស្ថិតិទំព័របញ្ជូនបន្ត インデックス インデックス拒否 カテゴリ非表示 カテ非表示
ギャラリー非表示 セクション編集非表示 タイトルコンバート拒否 タイトル変換無効 タイトル非表示 不轉換內容 不轉換標題
不转换内容 不转换标题 二重転送修正無効 二重転送解消無効 内容変換抑制 内容変換無効 強制目錄 强显目录
新しいセクションリンク 新しいセクションリンク非表示 新しい節リンク 新しい節リンク非表示 新セクションリンク
新セクションリンク非表示 新段落链接 无图库 无新段落链接 无段落编辑 无目录 无索引 无编辑段落 無圖庫 無段落編輯 無目錄
目录 目次 目次強制 目次非表示 目錄 節編集非表示 索引 隐藏分类 隠しカテゴリ 隱藏分類 静态重定向 静的転送 靜態重新導向
非表示カテ 갤러리숨김 내변안함 내변없음 내용변환안함 내용변환없음 넘겨주기고정 단락편집숨김 목차 목차보임 목차숨김
목차표시 문단편집숨김 부분편집숨김 새글쓰기 새글쓰기숨기기 새문단쓰기 새문단쓰기숨기기 색인 색인거부 색인안함
숨은분류 제목변환안함 제목변환없음 제변안함 제변없음 화랑숨김
"""
SWITCHES = frozenset(_WORDS.split())
