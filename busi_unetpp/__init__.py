"""U-Net++ for tumor segmentation in breast ultrasound (BUSI): the paper implemented, explained and honestly measured

Modules:

- `busi_unetpp.assess`: Everything this book knows how to say about a set of predictions, said at once.
- `busi_unetpp.augment`: What may change in an ultrasound image without changing the answer.
- `busi_unetpp.benchmark`: How fast it is on the machine at hand, each figure against its limit.
- `busi_unetpp.bundle`: Everything that a training needs in one small folder, for a machine that has no internet.
- `busi_unetpp.calibration`: Does a probability of 0.8 mean that eight of ten such pixels are tumor? Measure it, and mend it with one number.
- `busi_unetpp.ceiling`: Measure how well BUSI's outlines agree with each other where the same picture was outlined twice.
- `busi_unetpp.checkpoint`: What a training writes down after each epoch, so that nothing is lost and anything can go on.
- `busi_unetpp.classical`: Segment without training: nothing, a fixed ellipse, Otsu's threshold, region growing and Chan-Vese, so that a network's gain is visible.
- `busi_unetpp.cli`: Every job of this book from a terminal.
- `busi_unetpp.compare`: Is one run better than another, or luckier?
- `busi_unetpp.dataset`: Read BUSI from disk, count it, and look at it before any model does.
- `busi_unetpp.distill`: A network that learns from other networks as well as from the annotations, so that a small one comes close to a large one.
- `busi_unetpp.distributed`: One training on several cards, with the result that one card would have given.
- `busi_unetpp.duplicates`: Find the images that show the same lesion, so that none of them trains a network that another one judges.
- `busi_unetpp.encoder`: The nested decoder on an encoder that has already seen a million photographs.
- `busi_unetpp.evaluate`: Score a trained network on both parts of its split, and place the paper's Table 1 beside it.
- `busi_unetpp.explore`: Move the threshold and watch the outline, step through the dataset, drop in an image of your own: the explorer, and the small functions that it is made of.
- `busi_unetpp.export`: Hand the network to programs that know nothing of this package: one file that takes the pixels of an image and gives a probability for each.
- `busi_unetpp.fetch`: Get BUSI or BUS-BRA onto the disk, whole and checked, or say exactly what to do instead.
- `busi_unetpp.figures`: One style for every picture of this book, and the measurements that it has to pass.
- `busi_unetpp.files`: A full disk or a power cut in the middle of a write costs nothing that was there before.
- `busi_unetpp.generalization`: What is left of a score on images of a hospital that the network has never seen?
- `busi_unetpp.groups`: Know which images belong together wherever they lie, and say so where it is not known.
- `busi_unetpp.hub`: Hand a trained model on with everything that belongs to it, in a folder or on the Hugging Face Hub, and take one in without running anybody's code.
- `busi_unetpp.images`: Read what a hospital, a scanner or a friend hands over: PNG, JPEG, TIFF, BMP and DICOM, one frame at a time, with the size of a pixel where it is known.
- `busi_unetpp.learner`: The paper's training as a recipe, and a fastai Learner that follows it.
- `busi_unetpp.lesions`: Score a prediction where a reader sees it: on the image as it was taken, outline by outline and lesion by lesion.
- `busi_unetpp.loaders`: The same batches in the same order every time, and no training on a dataset that is broken.
- `busi_unetpp.losses`: Reward overlap, not pixels, so that a network cannot win by finding nothing.
- `busi_unetpp.manifest`: Tell whether a copy of BUSI or of BUS-BRA is the published one, file by file.
- `busi_unetpp.meanings`: Score the same predictions in every way met in the literature, so that any paper's figure can be placed, and read Table 1 with it.
- `busi_unetpp.metrics`: What a score counts, what it says of an empty mask, and what changes when it is pooled.
- `busi_unetpp.operating`: How much should a network silence? The whole curve, and one point on it that is chosen on validation images.
- `busi_unetpp.phantom`: Simulate breast ultrasound from its physics, so that everything in this book runs without a download.
- `busi_unetpp.predict`: A mask for any image, from Python or for a whole folder: with areas in square millimeters where the file allows it, a picture to check it by, and a flag on the ones a human should see.
- `busi_unetpp.preprocess`: What the network gets to see of an image, and what it can no longer see.
- `busi_unetpp.presence`: Whether the image shows a lesion at all is one question, where it lies is another: two outputs, and no formula that mixes them.
- `busi_unetpp.report`: The paper's table and figure, the curves and the cases, on one page that can be sent around.
- `busi_unetpp.reproduce`: Train the paper's network at the paper's size, as often as there is time for, and put the result beside the paper's table.
- `busi_unetpp.run`: Data in, folder out: everything that a training leaves behind, and how to continue or repeat it.
- `busi_unetpp.site`: Build these pages, and check them, with or without Quarto.
- `busi_unetpp.sources`: Read the sets of other hospitals as the same table, and say what each of them lacks.
- `busi_unetpp.split`: Draw the line between learning and judging once, with all pictures of one lesion on the same side of it.
- `busi_unetpp.stats`: 95 % intervals and paired tests that resample groups of copies, not single images.
- `busi_unetpp.strong`: Which recipe beats the paper's, how was it found, and what does it reach on images that had no say in it?
- `busi_unetpp.uncertainty`: Which of its own predictions will be wrong? Ask the network the same question several times, and send the image to a human when the answers differ.
- `busi_unetpp.unetpp`: The paper's network, node by node, and drawn from the module itself.
- `busi_unetpp.zoo`: How does U-Net++ stand beside the systems that the paper compares and cites, if all are trained alike?
- `busi_unetpp.zoo_networks`: The networks that the paper cites and no library has, each from its description, in a few lines."""

__version__ = "0.1.0"
